"""Wilson's interval and pass@k, held to values and definitions from elsewhere."""

from __future__ import annotations

from itertools import combinations
from statistics import mean

import pytest

from relay_lightning.evaluation.proportion import pass_at_k, wilson_interval


@pytest.mark.parametrize(
    ("num_successes", "num_trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_that_of_newcombe(num_successes, num_trials, low, high):
    assert wilson_interval(num_successes, num_trials) == pytest.approx((low, high), abs=1e-4)


def test_wilson_interval_solves_the_equation_of_the_score_test():
    for bound in wilson_interval(37, 120):
        assert (37 / 120 - bound) ** 2 == pytest.approx(1.959963984540054**2 * bound * (1 - bound) / 120)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for num_correct in range(6):
        answers = [index < num_correct for index in range(5)]
        for k in range(1, 6):
            assert pass_at_k(5, num_correct, k) == pytest.approx(mean(map(any, combinations(answers, k))))


def test_estimates_need_enough_samples():
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples"):
        pass_at_k(2, 1, 3)
