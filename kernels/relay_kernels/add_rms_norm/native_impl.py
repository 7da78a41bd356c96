"""The RMS norm behind a residual sum in the native library: `kernels/csrc/pointwise.cc`."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.add_rms_norm.reference import check_add_rms_norm
from relay_kernels.native import run_native


def add_rms_norm_native(hidden: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """`add_rms_norm`: ([..., D], [..., D])."""
    normed = torch.empty_like(hidden, memory_format=torch.contiguous_format)
    total = None if residual is None else torch.empty_like(hidden, memory_format=torch.contiguous_format)
    num_threads, eps = torch.get_num_threads(), float(eps)
    if not run_native("add_rms_norm", normed, total, hidden, residual, weight, eps, num_threads):
        check_add_rms_norm(hidden, weight, eps, residual)
        # In order, so it is the strides that do not suit.
        rows = None if residual is None else residual.contiguous()
        if not run_native("add_rms_norm", normed, total, hidden.contiguous(), rows, weight, eps, num_threads):
            raise RuntimeError("the native library refuses arguments of add_rms_norm that are in order")
    return normed, hidden if total is None else total
