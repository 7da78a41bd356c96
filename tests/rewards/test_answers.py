"""Judging answers: which box counts, what is equal, and that nothing a student writes can stop the judge."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.rewards import equivalence
from relay_lightning.rewards.answers import AnswerStatus, extract_boxed, is_correct, judge_answer


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


def test_answers_are_judged_outside_the_main_thread():
    """math-verify's own timeouts use signal.alarm, which raises in a thread; there every answer would be wrong."""
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(judge_answer(r"\boxed{3/4}", "0.75")))
    thread.start()
    thread.join()
    assert statuses == [AnswerStatus.CORRECT]


def test_an_endless_computation_is_ended_and_the_next_answer_judged():
    """9^9^9^9 keeps sympy inside one C function for ever; no exception can stop it, so the process is ended."""
    worker = equivalence._Worker(max_processor_s=0.5)
    try:
        assert worker.compare("7", "9^{9^{9^{9}}}") is equivalence.Equivalence.UNDECIDED
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
