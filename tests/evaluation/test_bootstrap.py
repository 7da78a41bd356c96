"""The bootstrap interval of an accuracy."""

import pytest

from relay_lightning.evaluation.bootstrap import bootstrap_interval


def test_interval_matches_the_normal_approximation_when_there_are_many_problems():
    low, high = bootstrap_interval([1.0] * 300 + [0.0] * 200)
    half_width = 1.96 * (0.6 * 0.4 / 500) ** 0.5
    assert low == pytest.approx(0.6 - half_width, abs=0.005)
    assert high == pytest.approx(0.6 + half_width, abs=0.005)


def test_interval_is_a_point_when_all_values_agree():
    assert bootstrap_interval([1.0] * 20) == (1.0, 1.0)


def test_interval_repeats_when_the_seed_does():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])
