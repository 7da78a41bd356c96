"""Bootstrap confidence intervals of means and ratios over problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch

NUM_RESAMPLES = 2000
"""Enough that the ends of a 95 % interval move by less than a tenth of its width from seed to seed."""


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values` (one value per problem): (low, high).

    Deterministic in `seed`. Raises ValueError for no values.
    """
    return bootstrap_ratio_interval(values, [1.0] * len(values), level=level, seed=seed)


def bootstrap_ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """The same for sum over sum, both parts given per problem; a resample without a denominator counts as 0."""
    if not numerators:
        raise ValueError("A confidence interval needs at least one value.")
    parts = torch.tensor([list(numerators), list(denominators)], dtype=torch.float64)  # [2, N]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(numerators), (NUM_RESAMPLES, len(numerators)), generator=generator)
    top, bottom = parts[:, drawn].mean(dim=2)  # [NUM_RESAMPLES] each
    ratios = torch.where(bottom > 0, top / bottom, 0.0)
    tail = (1.0 - level) / 2
    low, high = torch.quantile(ratios, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return low, high
