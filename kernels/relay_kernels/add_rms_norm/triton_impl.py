# ruff: noqa: N803 - compile-time arguments are capitals in Triton
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The RMS norm behind a residual sum in Triton: one program a row, which it holds in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from relay_kernels.backends import as_rows, on_device


@triton.jit
def _norm_kernel(
    hidden_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    sum_ptr,
    hidden_stride,
    residual_stride,
    size,
    eps,
    BLOCK: tl.constexpr,
):
    """One row [D]: its sum, rounded and stored, and the norm of what was stored."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < size
    total = tl.load(hidden_ptr + row * hidden_stride + column, mask=mask, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        total += tl.load(residual_ptr + row * residual_stride + column, mask=mask, other=0.0).to(tl.float32)
        rounded = total.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * size + column, rounded, mask=mask)
        total = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / size + eps)
    weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
    normed = total * scale * weight
    tl.store(normed_ptr + row * size + column, normed.to(normed_ptr.dtype.element_ty), mask=mask)


def add_rms_norm_triton(hidden: Tensor, weight: Tensor, eps: float, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """`add_rms_norm`: ([..., D], [..., D]), in one launch."""
    normed = torch.empty(hidden.shape, dtype=hidden.dtype, device=hidden.device)
    total = hidden if residual is None else torch.empty_like(normed)
    if normed.numel() == 0:
        return normed, total
    size = hidden.shape[-1]
    rows = as_rows(hidden)
    residual_rows = None if residual is None else as_rows(residual)
    block = triton.next_power_of_2(size)
    with on_device(hidden):
        _norm_kernel[(rows.shape[0],)](
            rows,
            residual_rows,
            weight,
            normed,
            total,
            rows.stride(0),
            0 if residual_rows is None else residual_rows.stride(0),
            size,
            float(eps),
            BLOCK=block,
            num_warps=min(max(block // 512, 1), 16),
        )
    return normed, total
