"""The RMS norm and the linear layers behind it in plain PyTorch: the definition, and the way of many rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from relay_kernels.add_rms_norm import add_rms_norm
from relay_kernels.checks import check_epsilon, check_rows, check_weight
from relay_kernels.silu_mul import silu_mul

MAX_WEIGHTS = 3


def norm_linear_reference(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    is_gated: bool,
    *,
    backend: str = "reference",
) -> tuple[tuple[Tensor, ...], Tensor]:
    """`norm_linear`, one step after the other; `backend` is that of the norm and of the gate."""
    normed, total = add_rms_norm(hidden, norm_weight, eps, residual, backend=backend)
    outputs = tuple(functional.linear(normed, *layer) for layer in zip(weights, biases, strict=True))
    return (silu_mul(*outputs, backend=backend),) if is_gated else outputs, total


def check_norm_linear(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    is_gated: bool,
) -> None:
    """Raises ValueError unless the arguments are those of `norm_linear`."""
    check_rows("hidden", hidden)
    size = hidden.shape[-1]
    check_weight("norm_weight", norm_weight, size, hidden.device)
    check_epsilon(eps)
    if residual is not None:
        check_rows("residual", residual, like=hidden, like_name="hidden")
    if not 1 <= len(weights) <= MAX_WEIGHTS or (is_gated and len(weights) != 2):
        allowed = "two, gate and up," if is_gated else f"one to {MAX_WEIGHTS}"
        raise ValueError(f"weights must be {allowed} of them, not {len(weights)}")
    dtype = torch.promote_types(hidden.dtype if residual is None else residual.dtype, norm_weight.dtype)
    dtype = torch.promote_types(hidden.dtype, dtype)
    for index, weight in enumerate(weights):
        is_matrix = weight.ndim == 2 and weight.shape[1] == size and weight.numel() > 0
        if not is_matrix or not weight.is_floating_point() or weight.device != hidden.device:
            raise ValueError(
                f"weights[{index}] must be a float tensor [O, {size}] with values on {hidden.device}, "
                f"not {weight.dtype} {tuple(weight.shape)} on {weight.device}"
            )
        if weight.dtype is not dtype and not is_under_autocast(hidden):
            raise ValueError(f"weights[{index}] must have the dtype of the normed states, {dtype}, not {weight.dtype}")
    if is_gated and weights[0].shape != weights[1].shape:
        raise ValueError(f"weights[1] {tuple(weights[1].shape)} must have the shape of the gate's {weights[0].shape}")
    if len(biases) != len(weights):
        raise ValueError(f"biases must be as many as weights, {len(weights)}, not {len(biases)}")
    for index, bias in enumerate(biases):
        if bias is not None:
            check_weight(f"biases[{index}]", bias, weights[index].shape[0], hidden.device)
            if bias.dtype is not dtype and not is_under_autocast(hidden):
                raise ValueError(f"biases[{index}] must have the dtype of the normed states, {dtype}, not {bias.dtype}")


def is_under_autocast(tensor: Tensor) -> bool:
    """Whether autocast chooses the dtype of linear layers where `tensor` is."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)
