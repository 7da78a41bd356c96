"""The figures of `validate` and `test` from judged completions."""

from __future__ import annotations

import pytest

from relay_lightning.evaluation.bootstrap import bootstrap_ratio_interval
from relay_lightning.evaluation.evaluate import Judged
from relay_lightning.evaluation.held_out import held_out_fields, held_out_lines
from relay_lightning.evaluation.proportion import wilson_interval


def judged(prompt_id: int, is_correct: bool, num_teacher_tokens: int = 0) -> Judged:
    return Judged(prompt_id, is_correct, 10, num_teacher_tokens, int(num_teacher_tokens > 0), 0)


def test_one_completion_each_has_wilsons_interval():
    figures = held_out_fields([judged(0, True, 4), judged(1, False), judged(2, True)])
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert figures["accuracy_interval_95"] == list(wilson_interval(2, 3))
    assert figures["call_ratio"] == pytest.approx(4 / 30)
    assert figures["call_ratio_interval_95"] == list(bootstrap_ratio_interval([4, 0, 0], [10, 10, 10]))
    assert "3 problems, 1 completions each" in held_out_lines(figures)


def test_several_completions_have_average_and_pass_rates_in_any_order():
    rows = [judged(0, True), judged(1, False), judged(0, False), judged(1, False), judged(0, False), judged(1, False)]
    figures = held_out_fields(rows)
    assert figures["num_samples"] == 3
    assert figures["avg@3"] == figures["accuracy"] == pytest.approx(1 / 6)
    assert figures["pass@1"] == pytest.approx(1 / 6)
    assert figures["pass@2"] == pytest.approx((2 / 3) / 2)
    assert figures["pass@3"] == pytest.approx(1 / 2)
    assert [row[0] for row in figures["completions"]] == [0, 0, 0, 1, 1, 1]
    low, high = figures["accuracy_interval_95"]
    assert low == 0.0 <= figures["accuracy"] <= high == pytest.approx(1 / 3)  # of the two problems, not six trials


def test_no_problems_are_said_to_be_none():
    assert held_out_lines(held_out_fields([])) == ["no problems"]


def test_ratio_interval_is_of_sum_over_sum():
    low, high = bootstrap_ratio_interval([1.0] * 20 + [0.0] * 20, [1.0] * 20 + [9.0] * 20)
    assert low < 20 / 200 < high < 0.5  # the mean of the ratios is 0.5
    assert bootstrap_ratio_interval([0.0, 0.0], [0.0, 0.0]) == (0.0, 0.0)
