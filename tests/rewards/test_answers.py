"""Judging answers: which box counts, what is equal, and that nothing a student writes can stop the judge."""

from __future__ import annotations

import json
import logging
import os
import random
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.rewards import equivalence
from relay_lightning.rewards.answers import (
    AnswerStatus,
    extract_boxed,
    is_correct,
    is_reference,
    judge_answer,
    judge_answers,
)
from relay_lightning.rewards.equivalence import WorkerLimits, WorkerPool

PAIRS = defaultdict(list)
for line in Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8").splitlines():
    pair = json.loads(line)
    PAIRS[pair["kind"]].append((pair["reference"], pair["given"], pair["is_correct"]))


@pytest.mark.parametrize("kind", PAIRS)
def test_answers_are_judged_as_a_mathematician_would(kind):
    """Each kind is a notation whose meaning was once mistaken: `2, 300` for 2300, `no` for `on`, 2^-60 for 2^-61."""
    statuses = judge_answers([f"\\boxed{{{given}}}" for _, given, _ in PAIRS[kind]], [pair[0] for pair in PAIRS[kind]])
    wrongly = [pair for pair, status in zip(PAIRS[kind], statuses, strict=True) if (status == "correct") != pair[2]]
    assert not wrongly


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{1}, no: \boxed{ 2 }.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{7} and then \boxed{\frac{1}{", "7"),
        (r"} } \boxed{7} { {", "7"),
        (r"\boxed{5\\}", r"5\\"),
        (r"\boxed{}", ""),
        (r"\boxed{5", None),
        (r"boxed{5}", None),
        ("", None),
    ],
)
def test_last_balanced_box_is_extracted(text, content):
    assert extract_boxed(text) == content


@given(st.text("0{}\\ab "), st.text("01+x"), st.text("0}\\ab "))
def test_a_closed_box_is_found_whatever_stands_around_it(before, content, after):
    assert extract_boxed(f"{before} \\boxed{{{content}}} {after}") == content


def test_many_unfinished_boxes_take_linear_time():
    """A scan from every box to the end would be 10^10 steps here; the test ends because there is one pass."""
    assert extract_boxed("\\boxed{" * 100_000) is None


@pytest.fixture
def no_workers(monkeypatch):
    """Asking a worker fails the test."""

    class NoWorkers:
        def compare(self, reference, given, *_, **__):
            pytest.fail(f"a worker was asked for {reference!r} and {given!r}")

    monkeypatch.setattr(equivalence, "workers", NoWorkers())


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("5", "5"),
        ("005", "5"),
        ("1,234", "1234"),
        ("1{,}234", "1234"),
        (r"1\,234", "1234"),
        ("-0", "0"),
        ("+7", "7"),
        ("12.", "$12$"),
        ("5", r"\boxed{5}"),
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\frac12", "0.5"),
        ("2^{10}", "1024"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"\{2, 1\}", r"\{1, 2\}"),
        (r"\text{Tuesday}", "tuesday"),
        ("x = 5", "5"),
        (r"18\text{ dollars}", "18"),
        ("3, 2, 1", "1, 2, 3"),
        ("100!+1", "1+100!"),
    ],
)
def test_usual_answers_are_equal_without_a_worker(content, answer):
    assert judge_answer(f"so \\boxed{{{content}}}", answer) is AnswerStatus.CORRECT


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("6", "5"),
        ("-5", "5"),
        ("silent", "listen"),
        ("on", "no"),
        ("e", "A"),
        (r"\sqrt{-1}", "I"),
        ("(2, 1)", "(1, 2)"),
        ("3 4", "34"),
        ("1/3", "0.5"),
        ("0,0,1", "1,0,0"),
        ("b, a, c", "a, b, c"),
        ("red wine, blue cheese", "blue cheese, red wine"),
        ("04-22-2021", "-2039"),
    ],
)
def test_other_numbers_words_and_lists_are_wrong_without_a_worker(content, answer):
    assert judge_answer(f"\\boxed{{{content}}}", answer) is AnswerStatus.WRONG


@pytest.mark.usefixtures("no_workers")
def test_a_long_list_of_words_is_judged_in_process():
    """Lists of words once went to a computer algebra system: 34 of them took 43 s."""
    words = [f"{a}{b}{c}" for a in "bcdf" for b in "aeiou" for c in "lmn"]
    given = [*words[1:], words[0]]
    assert judge_answer(f"\\boxed{{{', '.join(given)}}}", ", ".join(words)) is AnswerStatus.WRONG
    assert judge_answer(f"\\boxed{{{', '.join(words)}}}", ",".join(words)) is AnswerStatus.CORRECT


@pytest.mark.parametrize(
    ("content", "answer", "status"),
    [
        (r"1+\sqrt 2", r"\sqrt{2}+1", AnswerStatus.CORRECT),
        (r"\int_0^1 2x dx", "1", AnswerStatus.CORRECT),
        ("???", "5", AnswerStatus.UNPARSABLE),
        ("1 + " * 500 + "1", "501", AnswerStatus.UNPARSABLE),
    ],
)
def test_formulas_are_compared_by_workers(content, answer, status):
    assert judge_answer(f"\\boxed{{{content}}}", answer) is status


def test_missing_and_empty_boxes_are_reported_apart():
    assert judge_answer("the answer is 5", "5") is AnswerStatus.MISSING
    assert judge_answer(r"\boxed{ }", "5") is AnswerStatus.UNPARSABLE
    assert not is_correct("the answer is 5", "5")
    assert is_correct(r"\boxed{5}", "5")


@pytest.mark.parametrize("answer", ["", " ", "$$", r"\boxed{}"])
def test_empty_reference_is_refused(answer):
    with pytest.raises(ValueError, match="answer must not be empty"):
        judge_answer(r"\boxed{5}", answer)


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("content", ["0" * 200_000 + "x", "{" * 50_000 + "1" + "}" * 50_000, "1," * 100_000 + "2"])
def test_an_answer_of_any_length_is_judged_at_once(content):
    """The pattern of an integer is quadratic: the zeros alone once took minutes, in the training process itself."""
    assert judge_answer(f"\\boxed{{{content}}}", "5") is AnswerStatus.UNPARSABLE


NASTY = ["(", "{", "\\{", "[[", "1,", "1 2", "\\frac", "\\sqrt{", "\\text{", "a_", "5°", " m", "/m", "⟦a⟧", "|x"]
NASTY += ["\\pm1", "A.", "!", "-", "\\\\", "\\sin", "x=", "1:", "and ", "\\cup", "²", "1e9", "**", "\\begin{", "%", "<"]


@given(st.lists(st.sampled_from(NASTY), max_size=30).map("".join), st.sampled_from(["5", "x^2", "1, 2", "a"]))
def test_nonsense_gets_a_verdict(content, answer):
    """Whatever is written, both sides are read without an exception (expressions are not compared here)."""
    from relay_lightning.rewards.comparison import Equivalence, compare_answers

    def check(*_):
        return Equivalence.DIFFERENT

    assert compare_answers(answer, content, check) in set(Equivalence)
    assert compare_answers(content, answer, check) in set(Equivalence)


@pytest.mark.usefixtures("no_workers")
@pytest.mark.parametrize("piece", NASTY)
def test_a_thousand_characters_of_nonsense_end(piece):
    """Repetition is what makes patterns and recursion explode; pytest's timeout would end this test."""
    content = (piece * 1000)[:999] + "?"
    status = judge_answer(f"{content} \\boxed{{{content.replace('{', '').replace('}', '')}}}", "red, 5")
    assert status in (AnswerStatus.WRONG, AnswerStatus.UNPARSABLE, AnswerStatus.MISSING)


@pytest.mark.parametrize(
    ("answer", "is_usable"),
    [("5", True), (r"\boxed{5}", True), ("$$", False), (r"\boxed{ }", False), ("1" * 1000, True), ("1" * 1001, False)],
)
def test_a_reference_is_usable_when_completions_can_be_judged_by_it(answer, is_usable):
    assert is_reference(answer) is is_usable
    if is_usable:
        assert is_correct(f"\\boxed{{{extract_boxed(answer) or answer}}}", answer)


def test_answers_are_judged_outside_the_main_thread():
    """math-verify's own timeouts use signal.alarm, which raises in a thread; there every answer would be wrong."""
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(judge_answer(r"\boxed{\sqrt{12}}", r"2\sqrt{3}")))
    thread.start()
    thread.join()
    assert statuses == [AnswerStatus.CORRECT]


def test_threads_that_judge_at_once_get_their_own_answers():
    def judge(number):
        return judge_answer(f"\\boxed{{\\sqrt{{{number}}}+x}}", f"x+\\sqrt{{{number + number % 2}}}")

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(judge, range(2, 66)))
    assert statuses == [AnswerStatus.WRONG if number % 2 else AnswerStatus.CORRECT for number in range(2, 66)]


@pytest.fixture
def impatient_workers(monkeypatch):
    """A pool of two workers that get half a second each, in place of the usual one."""
    pool = WorkerPool(2, WorkerLimits(processor_s=0.5))
    monkeypatch.setattr(equivalence, "workers", pool)
    yield pool
    pool.close()


@pytest.mark.usefixtures("impatient_workers")
def test_answers_are_judged_in_their_order_beside_one_that_takes_too_long():
    texts = [r"\boxed{\prod_{n=1}^{10^9} n}", r"\boxed{\sqrt{8}}", r"no box", r"\boxed{\sqrt{9.1}}"]
    statuses = judge_answers(texts, ["2", r"2\sqrt{2}", "1", r"2\sqrt{2}"])
    assert statuses == [AnswerStatus.UNPARSABLE, AnswerStatus.CORRECT, AnswerStatus.MISSING, AnswerStatus.WRONG]


@pytest.mark.usefixtures("impatient_workers")
def test_a_batch_of_hostile_answers_ends_when_its_budget_is_used_up(caplog):
    """Each would take its worker's limit: 200 of them once held a training step for minutes."""
    texts = [rf"\boxed{{\prod_{{n=1}}^{{10^9}} n+{index}}}" for index in range(200)]
    with caplog.at_level(logging.WARNING, "relay_lightning.rewards.answers"):
        statuses = judge_answers(texts, ["2"] * 200, budget_s=0.4)
    assert statuses == [AnswerStatus.UNPARSABLE] * 200
    [record] = caplog.records
    assert "of 200 answers were not compared" in record.message
    assert judge_answers([r"\boxed{\sqrt{8}}"], [r"2\sqrt{2}"]) == [AnswerStatus.CORRECT]


def benchmark_golds():
    folder = os.environ.get("RELAY_BENCHMARK_DATA")
    if not folder:
        pytest.skip("RELAY_BENCHMARK_DATA names no folder of JSONL files with question and answer")
    golds = defaultdict(list)
    for path in sorted(Path(folder).glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                golds[row.get("task", path.stem)].append(row["answer"])
    return golds


@pytest.mark.slow
def test_every_gold_answer_of_the_benchmarks_equals_itself():
    for name, answers in benchmark_golds().items():
        statuses = judge_answers([f"\\boxed{{{answer}}}" for answer in answers], answers)
        assert set(statuses) == {AnswerStatus.CORRECT}, name


@pytest.mark.slow
def test_every_gold_answer_of_the_benchmarks_equals_itself_in_other_dress():
    for name, answers in benchmark_golds().items():
        for dress in (r"\( {} \).", r"$\displaystyle {}$", r"\left. {} \right.", r"\ {}\,"):
            distinct = list(dict.fromkeys(answer.strip("$") for answer in answers))
            texts = [f"\\boxed{{{dress.replace('{}', answer)}}}" for answer in distinct]
            statuses = judge_answers(texts, distinct)
            wrong = [pair for pair in zip(distinct, statuses, strict=True) if pair[1] != "correct"]
            assert not wrong, (name, dress)


SAME = [{"15", r"15\mbox{ cm}^2"}, {"5", "x=5"}]
"""Golds of one benchmark that are written differently and are equal all the same."""


@pytest.mark.slow
def test_different_gold_answers_of_a_benchmark_are_not_equal():
    draw = random.Random(0)
    equal = []
    for answers in benchmark_golds().values():
        distinct = sorted(set(answers))
        pairs = {tuple(draw.choices(distinct, k=2)) for _ in range(500)} if len(distinct) > 1 else set()
        pairs = [pair for pair in pairs if pair[0] != pair[1]]
        statuses = judge_answers([f"\\boxed{{{given}}}" for _, given in pairs], [reference for reference, _ in pairs])
        equal += [pair for pair, status in zip(pairs, statuses, strict=True) if status == "correct"]
    assert [pair for pair in equal if set(pair) not in SAME] == []


@pytest.mark.slow
def test_permuted_gold_answers_are_wrong_where_order_is_the_answer():
    golds = benchmark_golds()
    draw = random.Random(0)
    for task in ("bbeh_word_sorting", "bbeh_web_of_lies", "bbeh_sarc_triples", "bbeh_sportqa"):
        for answer in set(golds.get(task, [])):
            parts = [part.strip() for part in answer.split(",")]
            shuffled = draw.sample(parts, len(parts))
            if shuffled != parts:
                assert not is_correct(f"\\boxed{{{', '.join(shuffled)}}}", answer), (answer, shuffled)
