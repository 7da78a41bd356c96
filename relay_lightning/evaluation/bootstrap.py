"""Bootstrap confidence interval of a mean over problems."""

from __future__ import annotations

from collections.abc import Sequence

import torch

NUM_RESAMPLES = 2000
"""Enough that the ends of a 95 % interval move by less than a tenth of its width from seed to seed."""


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values` (one value per problem): (low, high).

    Deterministic in `seed`. Raises ValueError for no values.
    """
    if not values:
        raise ValueError("A confidence interval needs at least one value.")
    sample = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (NUM_RESAMPLES, len(values)), generator=generator)
    means = sample[drawn].mean(dim=1)
    tail = (1.0 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1.0 - tail], dtype=torch.float64)).tolist()
    return low, high
