"""Argument checks that the ops share: each raises one sentence that names the argument and the value."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}.")


def check_group_size(group_size: int, num_samples: int) -> None:
    """Raises ValueError unless `num_samples` splits into groups of at least two."""
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2, because an advantage compares samples; got {group_size}.")
    if num_samples % group_size != 0:
        raise ValueError(f"group_size must divide the number of samples; got {num_samples} samples for {group_size}.")


def check_samples(
    name: str, tensor: torch.Tensor, num_samples: int, device: torch.device, *, allow_bool: bool = False
) -> None:
    """Raises ValueError unless `tensor` is an integer (or, if allowed, bool) vector of `num_samples` on `device`."""
    if tensor.ndim != 1 or tensor.shape[0] != num_samples:
        raise ValueError(f"{name} must have the shape [{num_samples}]; got {list(tensor.shape)}.")
    is_bool = tensor.dtype == torch.bool
    if tensor.is_floating_point() or tensor.is_complex() or (is_bool and not allow_bool):
        wanted = "bool or an integer type" if allow_bool else "an integer type"
        raise ValueError(f"{name} must be {wanted}; got {tensor.dtype}.")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, where is_correct is; got {tensor.device}.")


def check_rows(name: str, tensor: Tensor, *, like: Tensor | None = None, like_name: str = "") -> None:
    """Raises ValueError unless `tensor` is a float tensor of rows, of the shape and on the device of `like`."""
    if tensor.ndim == 0 or not tensor.is_floating_point():
        raise ValueError(f"{name} must be a float tensor [..., D], not {tensor.dtype} {tuple(tensor.shape)}")
    if like is not None and (tensor.shape, tensor.device) != (like.shape, like.device):
        raise ValueError(
            f"{name} ({tuple(tensor.shape)} on {tensor.device}) must have the shape and the device of {like_name} "
            f"({tuple(like.shape)} on {like.device})"
        )


def check_epsilon(eps: float) -> None:
    """Raises ValueError unless `eps` may stand under a square root."""
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, not {eps}")


def has_shared_elements(tensor: Tensor) -> bool:
    """True where several elements have one address, as after `expand` or in windows that overlap: it is not written to.

    Every dimension must step over all that those of smaller strides span.
    """
    span = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < span:
            return tensor.numel() > 0
        span += (size - 1) * stride
    return False


def check_weight(name: str, weight: Tensor, size: int, device: torch.device) -> None:
    """Raises ValueError unless `weight` is a contiguous float vector of `size` on `device`."""
    if weight.shape != (size,) or not weight.is_floating_point() or weight.device != device:
        raise ValueError(
            f"{name} must be a float tensor [{size}] on {device}, not {weight.dtype} {tuple(weight.shape)} "
            f"on {weight.device}"
        )
    if not weight.is_contiguous():
        raise ValueError(f"{name} must be contiguous, its stride is {weight.stride(0)}")
