"""The attention by FlashAttention's `flash_attn_with_kvcache` (package `flash-attn`), where it is asked for.

Its causal mask is aligned to the bottom right: of T queries over n cached tokens, query i sees the first
n - T + i + 1. That is our definition for a whole chunk; a row with padding gets its queries moved to the right end.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor

from relay_kernels.backends import has_flash_attention

FLASH_DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_SIZE, HEAD_SIZE_STEP = 256, 8
"""Heads of other sizes FlashAttention pads, which copies the whole cache."""
BLOCK_STEP = 256
"""FlashAttention 2 takes a block table only for blocks of a multiple of so many tokens."""


def why_not_flash(query: Tensor, key_cache: Tensor, block_table: Tensor | None) -> str | None:
    """The reason why FlashAttention cannot run on these arguments, or None when it can."""
    if not has_flash_attention():
        return "the package 'flash-attn' is not installed"
    if not query.is_cuda:
        return f"the tensors are on {query.device.type}, not on a CUDA device"
    if query.dtype not in FLASH_DTYPES:
        return f"its dtypes are {', '.join(map(str, FLASH_DTYPES))}, not {query.dtype}"
    if query.shape[-1] > MAX_HEAD_SIZE or query.shape[-1] % HEAD_SIZE_STEP:
        return f"its head sizes are multiples of {HEAD_SIZE_STEP} up to {MAX_HEAD_SIZE}, not {query.shape[-1]}"
    if _is_paged(block_table) and key_cache.shape[1] % BLOCK_STEP:
        return f"its blocks hold a multiple of {BLOCK_STEP} tokens, not {key_cache.shape[1]}"
    return None


def decode_attention_flash(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_seqlens: Tensor,
    new_key: Tensor | None,
    new_value: Tensor | None,
    num_new: Tensor | None,
    block_table: Tensor | None,
    scale: float,
) -> Tensor:
    """`decode_attention`, [B, T, H, D]. FlashAttention appends whole chunks itself, `append_kv` those with padding."""
    from flash_attn import flash_attn_with_kvcache

    from relay_kernels.decode_attention import append_kv

    if query.numel() == 0:
        return torch.empty_like(query)
    num_rows, num_tokens = query.shape[:2]
    if new_key is not None and new_value is not None and num_new is not None:
        append_kv(key_cache, value_cache, new_key, new_value, cache_seqlens, num_new=num_new, block_table=block_table)
        new_key = new_value = None
    capacity = key_cache.shape[1]
    blocks: dict[str, Tensor] = {}
    if _is_paged(block_table):
        capacity *= block_table.shape[1]
        blocks["block_table"] = block_table.to(torch.int32).contiguous()
    elif block_table is not None:
        blocks["cache_batch_idx"] = block_table[:, 0].to(torch.int32).contiguous()
    # With new tokens FlashAttention wants the length before them, without them that of all it may see.
    lengths = cache_seqlens.clamp(0, capacity)
    if new_key is None:
        lengths = (lengths + (num_tokens if num_new is None else num_new)).clamp(0, capacity)
    output: Tensor = flash_attn_with_kvcache(
        query if num_new is None or num_tokens == 1 else _to_the_right(query, num_new),
        key_cache if block_table is not None else key_cache[:num_rows],
        value_cache if block_table is not None else value_cache[:num_rows],
        new_key,
        new_value,
        cache_seqlens=lengths.to(torch.int32).contiguous(),
        softmax_scale=scale,
        causal=True,
        **blocks,
    )
    if num_new is None:
        return output
    if num_tokens > 1:
        output = _to_the_right(output, num_tokens - num_new)
    is_padding = torch.arange(num_tokens, device=query.device) >= num_new[:, None]  # [B, T]
    return output.masked_fill(is_padding[..., None, None], 0.0)


def _is_paged(block_table: Tensor | None) -> TypeGuard[Tensor]:
    """True if rows have several blocks; a single one is FlashAttention's `cache_batch_idx`."""
    return block_table is not None and block_table.shape[1] > 1


def _to_the_right(states: Tensor, num_first: Tensor) -> Tensor:
    """[B, T, H, D] with each row turned so that its first num_first[b] tokens come last."""
    num_rows, num_tokens = states.shape[:2]
    index = (torch.arange(num_tokens, device=states.device) + num_first[:, None]) % num_tokens  # [B, T]
    return states[torch.arange(num_rows, device=states.device)[:, None], index]
