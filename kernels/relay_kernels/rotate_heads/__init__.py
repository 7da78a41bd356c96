"""Rotary positions of queries and keys, with Qwen3's norm of each head before them. Maths: README.md.

Shapes: N rows, T tokens, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.backends import are_fake, choose_backend_for
from relay_kernels.rotate_heads.native_impl import rotate_heads_native
from relay_kernels.rotate_heads.reference import check_rotate_heads, rotate_heads_reference

NAMES = ("query", "key", "cosine", "sine", "query_norm", "key_norm")


def rotate_heads(
    query: Tensor,
    key: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 1e-6,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(query, key) with the halves of each head turned as pairs, [N, T, H, D] and [N, T, K, D]. No gradient.

    query, key: float, in any strides whose last is 1; cosine, sine: [N, T, D], in Transformers' order, where value d
    and value d + D/2 form a pair. query_norm, key_norm: weights [D] of an RMS norm of each head before the turn, both
    or neither. fp32 inside (fp64 for fp64), rounded once; tensors of different dtypes run by definition, and the
    results have the dtype of `query` and of `key`. Raises ValueError that names the argument.
    """
    arguments = (query, key, cosine, sine, query_norm, key_norm)
    chosen = choose_backend_for("rotate_heads", backend, *arguments, names=NAMES)
    if chosen == "native":
        return rotate_heads_native(*arguments, eps)
    check_rotate_heads(*arguments, eps)
    if chosen == "triton":
        from relay_kernels.rotate_heads.triton_impl import rotate_heads_triton

        return rotate_heads_triton(*arguments, eps)
    if are_fake(*arguments):
        return torch.empty_like(query), torch.empty_like(key)
    return rotate_heads_reference(*arguments, eps)
