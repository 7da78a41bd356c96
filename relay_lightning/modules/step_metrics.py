"""Figures of an optimiser step, over all its micro-batches and all processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


class StepMetrics:
    """Collects what every micro-batch reports until its optimiser step is complete.

    A figure comes with its weight: how many tokens it is over. Means add up by weight; a name that ends in `/max` or
    `/min` is the extreme. What has no weight says nothing; where nobody has any, the figure is 0.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._tables: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """One micro-batch: scalars under the same names every time, and the weight of each."""
        self._names = tuple(values)
        pairs = [torch.stack([values[name].detach().float(), weights[name].float()]) for name in values]
        self._tables.append(torch.stack(pairs))

    def reduce(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The figures of the step, [] fp32 each; starts afresh. `gather` gives those of all, stacked, on the CPU."""
        table = torch.stack(self._tables)  # [micro-batches, names, 2]
        self._tables = []
        values, weights = gather(table).double().flatten(0, 1).unbind(-1)  # [all micro-batches, names] each
        pairs = zip(self._names, values.unbind(1), weights.unbind(1), strict=True)
        return {name: _combine(name, value, weight).float() for name, value, weight in pairs}


def _combine(name: str, values: Tensor, weights: Tensor) -> Tensor:
    """[] from the values and weights of all micro-batches, [N] each."""
    values = values[weights > 0]
    if not len(values):
        return weights.new_zeros(())
    if name.endswith("/max"):
        return values.max()
    if name.endswith("/min"):
        return values.min()
    weights = weights[weights > 0]
    return (values * weights).sum() / weights.sum()
