"""The gate of a decoder block's MLP: silu(gate) * up. Maths: README.md."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.backends import are_fake, choose_backend_for
from relay_kernels.silu_mul.native_impl import silu_mul_native
from relay_kernels.silu_mul.reference import check_silu_mul, silu_mul_reference


def silu_mul(gate: Tensor, up: Tensor, *, backend: str = "auto") -> Tensor:
    """gate / (1 + e^-gate) * up, [..., D]. No gradient.

    gate, up: [..., D] float. fp32 inside (fp64 for fp64), rounded once. Tensors of different dtypes run by definition,
    with PyTorch's promotion. Raises ValueError that names the argument.
    """
    chosen = choose_backend_for("silu_mul", backend, gate, up, names=("gate", "up"))
    if chosen == "native":
        return silu_mul_native(gate, up)
    check_silu_mul(gate, up)
    if chosen == "triton":
        from relay_kernels.silu_mul.triton_impl import silu_mul_triton

        return silu_mul_triton(gate, up)
    if are_fake(gate, up):
        return torch.empty_like(gate)
    return silu_mul_reference(gate, up)
