"""The gated activation in the native library: `kernels/csrc/pointwise.cc`."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.native import run_native
from relay_kernels.silu_mul.reference import check_silu_mul


def silu_mul_native(gate: Tensor, up: Tensor) -> Tensor:
    """`silu_mul`, [..., D]."""
    output = torch.empty_like(gate, memory_format=torch.contiguous_format)
    num_threads = torch.get_num_threads()
    if not run_native("silu_mul", output, gate, up, num_threads):
        check_silu_mul(gate, up)
        # In order, so it is the strides that do not suit.
        if not run_native("silu_mul", output, gate.contiguous(), up.contiguous(), num_threads):
            raise RuntimeError("the native library refuses arguments of silu_mul that are in order")
    return output
