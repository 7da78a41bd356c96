"""Rotary positions in the native library: `kernels/csrc/pointwise.cc`."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.native import run_native
from relay_kernels.rotate_heads.reference import check_rotate_heads


def rotate_heads_native(
    query: Tensor,
    key: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`rotate_heads`: ([N, T, H, D], [N, T, K, D])."""
    arguments = (query, key, cosine, sine, query_norm, key_norm)
    turned_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    turned_key = torch.empty_like(key, memory_format=torch.contiguous_format)
    if not run_native("rotate_heads", turned_query, turned_key, *arguments, float(eps), torch.get_num_threads()):
        check_rotate_heads(*arguments, eps)
        raise RuntimeError("the native library refuses arguments of rotate_heads that are in order")
    return turned_query, turned_key
