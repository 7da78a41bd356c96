"""Estimators of shares of right answers: Wilson's interval, and pass@k."""

from __future__ import annotations

import math

Z_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution, for two-sided intervals of 95 %."""


def wilson_interval(num_successes: int, num_trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion: (low, high), within [0, 1] even if all or none succeeded.

    Raises ValueError for no trials.
    """
    if num_trials < 1:
        raise ValueError("A confidence interval needs at least one trial.")
    share, z2 = num_successes / num_trials, Z_95**2
    centre = share + z2 / (2 * num_trials)
    half = Z_95 * math.sqrt(share * (1 - share) / num_trials + z2 / (4 * num_trials**2))
    scale = 1 + z2 / num_trials
    low, high = (centre - half) / scale, (centre + half) / scale
    return (0.0 if num_successes == 0 else low), (1.0 if num_successes == num_trials else high)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased probability that one of `k` samples is right: 1 - C(n - c, k) / C(n, k) (Chen et al., 2107.03374).

    Raises ValueError for more than the samples there are.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs at least {k} samples of a problem, but there are {num_samples}.")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
