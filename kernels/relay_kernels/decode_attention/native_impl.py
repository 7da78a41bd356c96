"""The attention and the append in the native library: `kernels/csrc/decode_attention.cc`.

The library checks all arguments itself, values included, before it writes anything, and refuses what does not fit;
only then does Python look for the argument at fault.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.decode_attention.checks import check_append, check_attention
from relay_kernels.native import run_native


def append_kv_native(
    key_cache: Tensor,
    value_cache: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    cache_seqlens: Tensor,
    num_new: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """`append_kv`, in place."""
    arguments = (key_cache, value_cache, new_key, new_value, cache_seqlens, num_new, block_table)
    if not run_native("append_kv", *arguments):
        check_append(*arguments)
        raise RuntimeError("the native library refuses arguments of append_kv that are in order")


def decode_attention_native(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_seqlens: Tensor,
    new_key: Tensor | None,
    new_value: Tensor | None,
    num_new: Tensor | None,
    block_table: Tensor | None,
    scale: float | None,
) -> Tensor:
    """`decode_attention`, [B, T, H, D]; fp32 inside."""
    arguments = (query, key_cache, value_cache, cache_seqlens, new_key, new_value, num_new, block_table)
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    scale = None if scale is None else float(scale)
    if not run_native("decode_attention", output, *arguments, scale, torch.get_num_threads()):
        check_attention(*arguments, scale)
        raise RuntimeError("the native library refuses arguments of decode_attention that are in order")
    return output
