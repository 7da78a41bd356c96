"""Is the final answer of a completion right?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum

from relay_lightning.rewards.equivalence import MAX_ANSWER_CHARACTERS, NUM_WORKERS, Equivalence, check_equivalence


class AnswerStatus(StrEnum):
    """How a completion's answer compares with the reference."""

    CORRECT = "correct"
    WRONG = "wrong"
    MISSING = "missing"
    """There is no balanced box."""
    UNPARSABLE = "unparsable"
    """The box is empty or overfull, or the answers could not be read as mathematics or not be compared in time."""


_BRACES = re.compile(r"\\boxed\s*\{|\\[{}]|[{}]")
_INTEGER = re.compile(r"([+-]?)0*(\d+|\d{1,3}(?:,\d{3})+)", re.ASCII)
_SPACING = re.compile(r"\\[,!;: ]|\\(?:left|right)(?![a-zA-Z])|(?<!\d)\s+|\s+(?!\d)")  # "3 4" is not 34
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[a-zA-Z]{3,}", re.ASCII)


def extract_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{...}`, stripped, or None. Escaped braces `\{ \}` do not count."""
    last: tuple[int, int] | None = None
    opened: list[tuple[int, bool]] = []  # where the content starts, and whether `\boxed` opened it
    for match in _BRACES.finditer(text):
        brace = match.group()
        if brace == "{" or brace.startswith("\\boxed"):
            opened.append((match.end(), brace != "{"))
        elif brace == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (last is None or start > last[0]):
                last = (start, match.start())
    return None if last is None else text[last[0] : last[1]].strip()


def judge_answer(text: str, answer: str) -> AnswerStatus:
    """Compares the last boxed answer of `text` with the reference `answer`, itself boxed or bare.

    Equal notations and integers are decided here; everything else by math-verify (section "Answers" of
    docs/numerics.md). Raises ValueError when the reference is empty.
    """
    bare = _unboxed(answer)
    reference = _normalise(bare)
    if not reference:
        raise ValueError(f"answer must not be empty; got {answer!r}.")
    boxed = extract_boxed(text)
    if boxed is None:
        return AnswerStatus.MISSING
    if len(boxed) > MAX_ANSWER_CHARACTERS:  # before any pattern sees it: one of them takes quadratic time
        return AnswerStatus.UNPARSABLE
    given = _normalise(boxed)
    if not given:
        return AnswerStatus.UNPARSABLE
    if given == reference:
        return AnswerStatus.CORRECT
    if (_INTEGER.fullmatch(given) and _INTEGER.fullmatch(reference)) or _WORDS.fullmatch(reference):
        return AnswerStatus.WRONG
    return _STATUS_OF[check_equivalence(bare.strip().strip("$"), boxed)]


def judge_answers(texts: Sequence[str], answers: Sequence[str]) -> list[AnswerStatus]:
    """`judge_answer` of every pair, in worker threads: a comparison that takes long holds up no other.

    Raises ValueError as `judge_answer` does, and for sequences of different length.
    """
    with ThreadPoolExecutor(NUM_WORKERS) as threads:
        return list(threads.map(lambda pair: judge_answer(*pair), zip(texts, answers, strict=True)))


def is_reference(answer: str) -> bool:
    """Whether completions can be judged by `answer`: it is not empty, and not longer than any answer may be."""
    bare = _unboxed(answer)
    return len(bare) <= MAX_ANSWER_CHARACTERS and bool(_normalise(bare))


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


def _normalise(answer: str) -> str:
    """One spelling for what differs in notation only: spacing, `$`, text commands, signs and leading zeros."""
    plain = _TEXT.sub(r"\1", answer).replace("{,}", ",").strip().strip("$").rstrip(".")
    plain = _SPACING.sub("", plain.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    if integer := _INTEGER.fullmatch(plain):
        sign, digits = integer.groups()
        return ("-" if sign == "-" and digits != "0" else "") + digits.replace(",", "")
    return plain.casefold() if _WORDS.fullmatch(plain) else plain
