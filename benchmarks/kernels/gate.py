"""The rule by which a result is judged: it may err at most twice what plain PyTorch errs at the same dtype."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Check:
    """One result against its truth. Both errors are the largest absolute ones."""

    name: str
    error: float
    allowed: float

    @property
    def is_green(self) -> bool:
        """False for a NaN too."""
        return self.error <= self.allowed


def judge(name: str, actual: Tensor, plain: Tensor, truth: Tensor, *, floor: float | None = None) -> Check:
    """The check of `actual` against an fp64 `truth`, beside what plain PyTorch makes of the same inputs.

    floor: an error that is no difference; by default one rounding of the largest true value.
    """
    if actual.shape != truth.shape:
        return Check(name, math.inf, 0.0)
    if truth.numel() == 0:
        return Check(name, 0.0, 0.0)
    if floor is None:
        floor = torch.finfo(actual.dtype).eps * float(truth.abs().max())
    return Check(name, _error(actual, truth), 2 * _error(plain, truth) + floor)


def judge_equal(name: str, actual: Tensor, expected: Tensor) -> Check:
    """The check of integers: the error is how many differ, and none may."""
    if actual.shape != expected.shape:
        return Check(name, math.inf, 0.0)
    return Check(name, float((actual != expected).sum()), 0.0)


def _error(values: Tensor, truth: Tensor) -> float:
    return float((values.double() - truth.double()).abs().max())
