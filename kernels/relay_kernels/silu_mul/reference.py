"""The gated activation in plain PyTorch: the definition."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from relay_kernels.checks import check_rows


def silu_mul_reference(gate: Tensor, up: Tensor) -> Tensor:
    """`silu_mul`, [..., D]."""
    dtype = torch.promote_types(gate.dtype, up.dtype)
    compute = torch.promote_types(dtype, torch.float32)
    return (functional.silu(gate.to(compute)) * up).to(dtype)


def check_silu_mul(gate: Tensor, up: Tensor) -> None:
    """Raises ValueError unless the arguments are those of `silu_mul`."""
    check_rows("gate", gate)
    check_rows("up", up, like=gate, like_name="gate")
