"""The RMS norm of a decoder block, with the residual sum before it. Maths: README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.add_rms_norm.native_impl import add_rms_norm_native
from relay_kernels.add_rms_norm.reference import add_rms_norm_reference, check_add_rms_norm
from relay_kernels.backends import are_fake, choose_backend_for

NAMES = ("hidden", "weight", "residual")
MAX_TRITON_SIZE = 16384
"""Longest row that one Triton program holds in its registers."""


def add_rms_norm(
    hidden: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(normed, sum): sum = hidden + residual, normed = sum * rsqrt(mean(sum^2) + eps) * weight. No gradient.

    hidden, residual: [..., D] float; weight: [D]. Without a residual `sum` is `hidden` itself. fp32 inside (fp64 for
    fp64), from the sum as it was rounded. Tensors of different dtypes run by definition, with PyTorch's promotion.
    Raises ValueError that names the argument.
    """
    why_not = _why_not_triton(hidden)
    chosen = choose_backend_for("add_rms_norm", backend, hidden, weight, residual, names=NAMES, why_not=why_not)
    if chosen == "native":
        return add_rms_norm_native(hidden, weight, eps, residual)
    check_add_rms_norm(hidden, weight, eps, residual)
    if chosen == "triton":
        from relay_kernels.add_rms_norm.triton_impl import add_rms_norm_triton

        return add_rms_norm_triton(hidden, weight, eps, residual)
    if are_fake(hidden, weight, residual):
        return torch.empty_like(hidden), hidden if residual is None else torch.empty_like(hidden)
    return add_rms_norm_reference(hidden, weight, eps, residual)


def _why_not_triton(hidden: Tensor) -> str | None:
    if hidden.ndim and hidden.shape[-1] > MAX_TRITON_SIZE:
        return f"its rows end at {MAX_TRITON_SIZE}, not {hidden.shape[-1]}"
    return None
