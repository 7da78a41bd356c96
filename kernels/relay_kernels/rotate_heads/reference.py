"""Rotary positions, and the norm of each head before them, in plain PyTorch: the definition.

Shapes: N rows, T tokens, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.checks import check_epsilon, check_weight


def rotate_heads_reference(
    query: Tensor,
    key: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`rotate_heads`: ([N, T, H, D], [N, T, K, D])."""
    return _rotate(query, cosine, sine, query_norm, eps), _rotate(key, cosine, sine, key_norm, eps)


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
    if weight is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + float(eps)) * weight
    first, second = wide.chunk(2, -1)
    turned = wide * cosine[:, :, None] + torch.cat((-second, first), -1) * sine[:, :, None]
    return turned.to(heads.dtype)


def check_rotate_heads(
    query: Tensor,
    key: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
) -> None:
    """Raises ValueError unless the arguments are those of `rotate_heads`."""
    for name, heads in (("query", query), ("key", key)):
        if heads.ndim != 4 or not heads.is_floating_point() or heads.shape[-1] % 2:
            raise ValueError(f"{name} must be float [N, T, heads, D], D even, not {heads.dtype} {tuple(heads.shape)}")
        if heads.stride(-1) != 1 and heads.shape[-1] > 1:
            raise ValueError(f"{name} must be contiguous along its last dimension, its strides are {heads.stride()}")
    num_rows, num_tokens, _, size = query.shape
    if (key.shape[0], key.shape[1], key.shape[3], key.device) != (num_rows, num_tokens, size, query.device):
        raise ValueError(
            f"key ({tuple(key.shape)} on {key.device}) does not fit query ({tuple(query.shape)} on {query.device})"
        )
    for name, angles in (("cosine", cosine), ("sine", sine)):
        if angles.shape != (num_rows, num_tokens, size) or angles.device != query.device:
            raise ValueError(
                f"{name} must have the shape {(num_rows, num_tokens, size)} on {query.device}, "
                f"not {tuple(angles.shape)} on {angles.device}"
            )
        if angles.stride(-1) != 1 and size > 1:
            raise ValueError(f"{name} must be contiguous along its last dimension, its strides are {angles.stride()}")
    if (query_norm is None) != (key_norm is None):
        raise ValueError("query_norm and key_norm go together; one of them is None")
    for name, weight in (("query_norm", query_norm), ("key_norm", key_norm)):
        if weight is not None:
            check_weight(name, weight, size, query.device)
    check_epsilon(eps)
