"""The gated activation in the native library: `kernels/csrc/pointwise.cc`."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.native import native_function
from relay_kernels.silu_mul.reference import check_silu_mul


def silu_mul_native(gate: Tensor, up: Tensor) -> Tensor:
    """`silu_mul`, [..., D]."""
    output = torch.empty_like(gate, memory_format=torch.contiguous_format)
    run, num_threads = native_function("silu_mul"), torch.get_num_threads()
    if not run(output, gate, up, num_threads):
        check_silu_mul(gate, up)
        # In order, so it is the strides that do not suit.
        if not run(output, gate.contiguous(), up.contiguous(), num_threads):
            raise RuntimeError("the native library refuses arguments of silu_mul that are in order")
    return output
