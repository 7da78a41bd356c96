"""Where the tests of an op with several backends run, and what they compare its results with.

Triton's runs happen on a CUDA device, or in the process that test_interpreter.py starts.
"""

from __future__ import annotations

import os

import pytest
import torch
from native_library import needs_library
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HAS_CUDA = torch.cuda.is_available()
TRITON = ["triton"] if INTERPRETED else [pytest.param("triton", marks=pytest.mark.gpu)] * HAS_CUDA
BACKENDS = TRITON if INTERPRETED else ["reference", pytest.param("native", marks=needs_library), *TRITON]
DTYPES = [torch.float32, torch.float16 if INTERPRETED else torch.bfloat16]  # the interpreter cuts bf16 off
EXACTLY = {} if INTERPRETED else {"rtol": 0.0, "atol": 0.0}
"""Tolerances of Triton's results that must have the same bits on a device. The interpreter's products are numpy's,
whose library sums up in an order of its own."""
EPS = 1e-6


def rms_norm(states: Tensor, weight: Tensor) -> Tensor:
    """As one writes it first."""
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + EPS) * weight


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same in fp64."""
    return [None if tensor is None else tensor.double() for tensor in tensors]


def spread(tensor: Tensor) -> float:
    """The largest size of a finite value, at least 1: what one rounding is measured in."""
    finite = tensor[tensor.isfinite()].abs()
    return max(1.0, float(finite.max())) if finite.numel() else 1.0


def strided(tensor: Tensor, layout: str) -> Tensor:
    """The same values in other strides."""
    if layout == "rows apart":
        return torch.cat([tensor, torch.full_like(tensor, torch.nan)], -1)[..., : tensor.shape[-1]]
    if layout == "rows crossed":
        return tensor.transpose(0, 1).contiguous().transpose(0, 1)
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)
