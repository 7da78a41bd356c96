"""Judging answers: which box counts, what is equal, and that nothing a student writes can stop the judge."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

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
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"\text{Tuesday}", "tuesday"),
    ],
)
def test_notations_of_one_answer_are_equal_without_math_verify(content, answer, monkeypatch):
    monkeypatch.setattr("relay_lightning.rewards.answers.check_equivalence", None)  # calling it would raise
    assert judge_answer(f"so \\boxed{{{content}}}", answer) is AnswerStatus.CORRECT


@pytest.mark.parametrize(("content", "answer"), [("6", "5"), ("-5", "5"), ("50", "5"), ("silent", "listen")])
def test_other_integers_and_words_are_wrong_without_math_verify(content, answer, monkeypatch):
    monkeypatch.setattr("relay_lightning.rewards.answers.check_equivalence", None)
    assert judge_answer(f"\\boxed{{{content}}}", answer) is AnswerStatus.WRONG


@pytest.mark.parametrize(
    ("content", "answer", "status"),
    [
        (r"\frac12", "0.5", AnswerStatus.CORRECT),
        ("x = 5", "5", AnswerStatus.CORRECT),
        ("2^{10}", "1024", AnswerStatus.CORRECT),
        (r"1+\sqrt 2", r"\sqrt{2}+1", AnswerStatus.CORRECT),
        (r"\{2, 1\}", r"\{1, 2\}", AnswerStatus.CORRECT),
        ("(2, 1)", "(1, 2)", AnswerStatus.WRONG),
        ("3 4", "34", AnswerStatus.WRONG),
        ("1/3", "0.5", AnswerStatus.WRONG),
        ("???", "5", AnswerStatus.UNPARSABLE),
        ("1 + " * 500 + "1", "501", AnswerStatus.UNPARSABLE),
    ],
)
def test_mathematics_decides_the_rest(content, answer, status):
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


@pytest.mark.parametrize("content", ["0" * 200_000 + "x", "{" * 50_000 + "1" + "}" * 50_000, "1," * 100_000 + "2"])
def test_an_answer_of_any_length_is_judged_at_once(content, monkeypatch):
    """The pattern of an integer is quadratic: the zeros alone once took minutes, in the training process itself."""
    monkeypatch.setattr("relay_lightning.rewards.answers.check_equivalence", None)
    assert judge_answer(f"\\boxed{{{content}}}", "5") is AnswerStatus.UNPARSABLE


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
    thread = threading.Thread(target=lambda: statuses.append(judge_answer(r"\boxed{3/4}", "0.75")))
    thread.start()
    thread.join()
    assert statuses == [AnswerStatus.CORRECT]


def test_threads_that_judge_at_once_get_their_own_answers():
    def judge(number):
        return judge_answer(f"\\boxed{{{number}/7}}", f"{number + number % 2}/7")

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(judge, range(64)))
    assert statuses == [AnswerStatus.WRONG if number % 2 else AnswerStatus.CORRECT for number in range(64)]


ENDLESS = {
    "a tower of powers": "9^{9^{9^{9}}}",  # one C function for ever: no exception can stop it
    "a factorial": "(10^9)!",
    "a binomial": r"\binom{10^9}{5\cdot 10^8}",
    "a product": r"\prod_{n=1}^{10^9} n",
    "an expansion": "(x+1)^{100000}",
    "nested brackets": "(" * 450 + "1" + ")" * 450,  # the grammar, not the arithmetic
    "nested fractions": r"\frac{1}{" * 90 + "2" + "}" * 90,
}


@pytest.mark.parametrize("content", [ENDLESS["a tower of powers"], ENDLESS["nested brackets"]])
def test_an_endless_computation_is_ended_and_the_next_answer_judged(content):
    assert_ended(content)


@pytest.mark.slow
@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS)
def test_everything_endless_is_ended_in_worker_threads_too(content):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(assert_ended, content).result()


def assert_ended(content):
    worker = equivalence._Worker(max_processor_s=0.5)
    try:
        assert worker.compare("7", content) is equivalence.Equivalence.UNDECIDED
        assert worker.compare("1/2", "0.5") is equivalence.Equivalence.EQUAL
    finally:
        worker.close()


def test_worker_is_started_again_when_something_killed_it():
    worker = equivalence._Worker()
    try:
        assert worker.compare("1/2", "0.5") is equivalence.Equivalence.EQUAL
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        assert worker.compare("1/2", "0.25") is equivalence.Equivalence.DIFFERENT
    finally:
        worker.close()


def test_a_worker_that_cannot_start_says_so(tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="math-verify could not be started"):
        equivalence._Worker(broken).compare("1", "2")


def test_answers_are_judged_in_their_order_beside_one_that_takes_too_long(monkeypatch):
    workers = equivalence._Workers(2)
    for worker in workers._all:
        worker._command[-1] = "0.5"
    monkeypatch.setattr(equivalence, "_workers", workers)
    texts = [r"\boxed{9^{9^{9^{9^9}}}}", r"\boxed{10/14}", r"no box", r"\boxed{9/14}"]
    statuses = judge_answers(texts, ["2/7", "5/7", "1", "5/7"])
    workers.close()
    assert statuses == [AnswerStatus.UNPARSABLE, AnswerStatus.CORRECT, AnswerStatus.MISSING, AnswerStatus.WRONG]
