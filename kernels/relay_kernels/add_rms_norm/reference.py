"""The RMS norm behind a residual sum in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.checks import check_epsilon, check_rows, check_weight


def add_rms_norm_reference(
    hidden: Tensor, weight: Tensor, eps: float, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm`: ([..., D], [..., D])."""
    total = hidden if residual is None else hidden + residual
    dtype = torch.promote_types(total.dtype, weight.dtype)
    wide = total.to(torch.promote_types(dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + float(eps))
    return (wide * scale * weight).to(dtype), total


def check_add_rms_norm(hidden: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> None:
    """Raises ValueError unless the arguments are those of `add_rms_norm`."""
    check_rows("hidden", hidden)
    check_weight("weight", weight, hidden.shape[-1], hidden.device)
    if residual is not None:
        check_rows("residual", residual, like=hidden, like_name="hidden")
    check_epsilon(eps)
