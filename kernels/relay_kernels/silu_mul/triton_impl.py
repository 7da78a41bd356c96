# ruff: noqa: N803 - compile-time arguments are capitals in Triton
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The gated activation in Triton: one program for BLOCK values of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from relay_kernels.backends import as_rows, on_device

BLOCK = 1024
"""Values of a program: 8 of each input a thread, two 16-byte loads in flight of either at 16 bits."""


@triton.jit
def _silu_mul_kernel(gate_ptr, up_ptr, output_ptr, gate_stride, up_stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
    output = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(output_ptr + row * size + column, output.to(output_ptr.dtype.element_ty), mask=mask)


def silu_mul_triton(gate: Tensor, up: Tensor) -> Tensor:
    """`silu_mul`, [..., D], in one launch."""
    output = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if output.numel() == 0:
        return output
    size = gate.shape[-1]
    gates, ups = as_rows(gate), as_rows(up)
    block = min(BLOCK, triton.next_power_of_2(size))
    with on_device(gate):
        _silu_mul_kernel[(gates.shape[0], triton.cdiv(size, block))](
            gates, ups, output, gates.stride(0), ups.stride(0), size, BLOCK=block, num_warps=max(block // 256, 1)
        )
    return output
