"""Decode attention and the cache append in plain PyTorch: the definition, and the CPU path.

Shapes: B rows, T new tokens, H query heads, K key/value heads, D head size, N blocks of P tokens, M blocks of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def append_kv_reference(
    key_cache: Tensor,
    value_cache: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    cache_seqlens: Tensor,
    num_new: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """`append_kv`, in place."""
    num_rows, num_tokens = new_key.shape[:2]
    device, block_size = new_key.device, key_cache.shape[1]
    table = _table(num_rows, key_cache, block_table)  # [B, M]
    capacity = table.shape[1] * block_size
    if num_rows * num_tokens * capacity == 0:
        return
    position = cache_seqlens.long()[:, None] + torch.arange(num_tokens, device=device)  # [B, T]
    is_new = _is_new(num_rows, num_tokens, num_new, device) & (position >= 0) & (position < capacity)
    is_new = is_new.flatten()  # [B * T]
    position = position.clamp(0, capacity - 1)
    block = table.gather(1, position // block_size).flatten()
    offset = (position % block_size).flatten()
    # Selecting the new tokens would be a host sync, so padding is written as well: each as a copy of one new token, to
    # its place, since what a block table holds behind a row's tokens may belong to another row.
    source = torch.where(is_new, torch.arange(len(is_new), device=device), is_new.int().argmax())
    place = (block[source], offset[source])
    for cache, new in ((key_cache, new_key), (value_cache, new_value)):
        cache[place] = torch.where(is_new.any(), new.flatten(0, 1)[source], cache[place])


def decode_attention_reference(
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
    """`decode_attention`, [B, T, H, D]; computes in fp32 (fp64 for fp64 inputs)."""
    if new_key is not None and new_value is not None:
        append_kv_reference(key_cache, value_cache, new_key, new_value, cache_seqlens, num_new, block_table)
    num_rows, num_tokens, num_heads, head_size = query.shape
    num_kv_heads = key_cache.shape[2]
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    table = _table(num_rows, key_cache, block_table)
    key = key_cache[table].flatten(1, 2).to(compute)  # [B, L, K, D] with L = M * P
    value = value_cache[table].flatten(1, 2).to(compute)
    is_new = _is_new(num_rows, num_tokens, num_new, query.device)  # [B, T]
    position = torch.arange(key.shape[1], device=query.device)
    last = cache_seqlens.long()[:, None] + torch.arange(
        num_tokens, device=query.device
    )  # [B, T]: position of the token itself
    is_visible = (position <= last[..., None]) & is_new[..., None]  # [B, T, L]

    group = num_heads // num_kv_heads
    grouped = query.to(compute).reshape(num_rows, num_tokens, num_kv_heads, group, head_size)  # [B, T, K, G, D]
    scores = torch.einsum("btkgd,blkd->bktgl", grouped, key) * scale
    scores = scores.masked_fill(~is_visible[:, None, :, None, :], float("-inf"))
    weights = torch.softmax(scores, dim=-1).masked_fill(~is_new[:, None, :, None, None], 0.0)
    # What lies beyond a row's length may be anything, NaN included; a zero weight alone does not silence it.
    value = value.masked_fill(~is_visible.any(1)[:, :, None, None], 0.0)
    output = torch.einsum("bktgl,blkd->btkgd", weights, value)
    return output.reshape(num_rows, num_tokens, num_heads, head_size).to(query.dtype)


def _table(num_rows: int, cache: Tensor, block_table: Tensor | None) -> Tensor:
    """[B, M] int64: the blocks of each row; row b has block b alone by default. Ids out of range are clamped."""
    if block_table is None:
        return torch.arange(num_rows, device=cache.device)[:, None]
    return block_table.long().clamp(0, cache.shape[0] - 1)


def _is_new(num_rows: int, num_tokens: int, num_new: Tensor | None, device: torch.device) -> Tensor:
    """[B, T] bool: real new tokens, as against padding."""
    token = torch.arange(num_tokens, device=device)
    return (token < num_new[:, None]) if num_new is not None else token.expand(num_rows, -1) >= 0
