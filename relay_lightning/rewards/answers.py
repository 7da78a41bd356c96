"""Judging the final answer of a completion by a reference."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

from relay_lightning.rewards import equivalence
from relay_lightning.rewards.comparison import Equivalence, compare_answers
from relay_lightning.rewards.equivalence import MAX_ANSWER_CHARACTERS, NUM_WORKERS, ComparisonBudget
from relay_lightning.rewards.notation import plain_notation


class AnswerStatus(StrEnum):
    """How a completion's answer compares with the reference."""

    CORRECT = "correct"
    WRONG = "wrong"
    MISSING = "missing"
    """There is no balanced box."""
    UNPARSABLE = "unparsable"
    """The box is empty or overfull, or the answers could not be read as mathematics or not be compared in time."""


_BRACES = re.compile(r"\\\\(?!boxed)|\\boxed\s*\{|\\[{}]|[{}]")
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)

BATCH_BUDGET_S = 20.0
"""Seconds that the slow comparisons of a batch may take together."""

_log = logging.getLogger(__name__)


def extract_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}`, stripped, or None. Escaped braces `\{ \}` do not count."""
    last: tuple[int, int] | None = None
    opened: list[tuple[int, bool]] = []  # where the content starts, and whether `\boxed` opened it
    for match in _BRACES.finditer(text):
        brace = match.group()
        if brace == "{" or (brace.endswith("{") and "boxed" in brace):
            opened.append((match.end(), brace != "{"))
        elif brace == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (last is None or start > last[0]):
                last = (start, match.start())
    return None if last is None else text[last[0] : last[1]].strip()


def judge_answer(  # noqa: PLR0911
    text: str, answer: str, budget: ComparisonBudget | None = None
) -> AnswerStatus:
    """Compares the last boxed answer of `text` with the reference `answer`, itself boxed or bare.

    Numbers, words and what is made of them are decided here; formulas in worker processes (section "Answers" of
    docs/numerics.md), for as long as the budget lasts. Raises ValueError when the reference is empty.
    """
    reference = _unboxed(answer).strip()
    if not plain_notation(reference):
        raise ValueError(f"answer must not be empty; got {answer!r}.")
    given = extract_boxed(text)
    if given is None:
        return AnswerStatus.MISSING
    if len(given) > MAX_ANSWER_CHARACTERS:  # before any pattern sees it: some take quadratic time
        return AnswerStatus.UNPARSABLE
    if given == reference:
        return AnswerStatus.CORRECT
    if _INTEGER.fullmatch(given) and _INTEGER.fullmatch(reference):
        return AnswerStatus.CORRECT if int(given) == int(reference) else AnswerStatus.WRONG
    plain = plain_notation(given)
    if not plain:
        return AnswerStatus.UNPARSABLE
    if plain == plain_notation(reference):
        return AnswerStatus.CORRECT
    check = functools.partial(equivalence.workers.compare, budget=budget)
    return _STATUS_OF[compare_answers(reference, given, check)]


def judge_answers(
    texts: Sequence[str], answers: Sequence[str], *, budget_s: float = BATCH_BUDGET_S
) -> list[AnswerStatus]:
    """`judge_answer` of every pair, in worker threads: a comparison that takes long holds up no other.

    When slow comparisons have used up `budget_s`, the remaining formulas are unparsable, which is logged. Raises
    ValueError as `judge_answer` does, and for sequences of different length.
    """
    budget = ComparisonBudget(budget_s)
    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        pairs = zip(texts, answers, strict=True)
        statuses = list(threads.map(lambda pair: judge_answer(pair[0], pair[1], budget), pairs))
    if budget.num_refused:
        _log.warning(
            "%d of %d answers were not compared: slow comparisons had used up the %g s of the batch. They count as "
            "unparsable.",
            budget.num_refused,
            len(statuses),
            budget_s,
        )
    return statuses


def is_reference(answer: str) -> bool:
    """True when completions can be judged by `answer`: it is not empty, and not longer than any answer may be."""
    reference = _unboxed(answer)
    return len(reference) <= MAX_ANSWER_CHARACTERS and bool(plain_notation(reference))


def is_correct(text: str, answer: str) -> bool:
    """True when the last boxed answer of `text` equals the reference."""
    return judge_answer(text, answer) is AnswerStatus.CORRECT


_STATUS_OF = {
    Equivalence.EQUAL: AnswerStatus.CORRECT,
    Equivalence.DIFFERENT: AnswerStatus.WRONG,
    Equivalence.UNDECIDED: AnswerStatus.UNPARSABLE,
}


def _unboxed(answer: str) -> str:
    """The last box of a reference that has one."""
    boxed = extract_boxed(answer)
    return answer if boxed is None else boxed
