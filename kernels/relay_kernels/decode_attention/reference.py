"""Decode attention and the cache append in plain PyTorch: the definition, and the CPU path.

Shapes: B rows, T new tokens, H query heads, K key/value heads, D head size, S slots, L capacity.
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
    slots: Tensor | None,
) -> None:
    """`append_kv`, in place."""
    capacity, device = key_cache.shape[1], new_key.device
    num_rows, num_tokens = new_key.shape[0], min(new_key.shape[1], capacity)
    if num_tokens == 0:
        return
    position = cache_seqlens.long()[:, None] + torch.arange(num_tokens, device=device)  # [B, T]
    is_new = _is_new(num_rows, num_tokens, num_new, device) & (position >= 0) & (position < capacity)
    slot = torch.arange(num_rows, device=device) if slots is None else slots.long()
    # To pick the new tokens out would wait for the device. So all are written, padding with what is there already;
    # taken modulo the capacity, the places of a row are distinct.
    place = (slot[:, None], position % capacity)
    for cache, new in ((key_cache, new_key), (value_cache, new_value)):
        cache[place] = torch.where(is_new[..., None, None], new[:, :num_tokens], cache[place])


def decode_attention_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_seqlens: Tensor,
    new_key: Tensor | None,
    new_value: Tensor | None,
    num_new: Tensor | None,
    slots: Tensor | None,
    scale: float,
) -> Tensor:
    """`decode_attention`, [B, T, H, D]; computes in fp32 (fp64 for fp64 inputs)."""
    if new_key is not None and new_value is not None:
        append_kv_reference(key_cache, value_cache, new_key, new_value, cache_seqlens, num_new, slots)
    num_rows, num_tokens, num_heads, head_size = query.shape
    num_kv_heads = key_cache.shape[2]
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    index = torch.arange(num_rows, device=query.device) if slots is None else slots.long()
    key, value = key_cache[index].to(compute), value_cache[index].to(compute)  # [B, L, K, D]
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


def _is_new(num_rows: int, num_tokens: int, num_new: Tensor | None, device: torch.device) -> Tensor:
    """[B, T] bool: real new tokens, as against padding."""
    token = torch.arange(num_tokens, device=device)
    return (token < num_new[:, None]) if num_new is not None else token.expand(num_rows, -1) >= 0
