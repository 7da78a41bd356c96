"""`flash_attn_with_kvcache` in plain PyTorch, written from its documentation, with what it demands of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor


def flash_attn_with_kvcache(
    q: Tensor,  # [B, T, H, D]
    k_cache: Tensor,  # [S, L, K, D], or [N, P, K, D] with a block table
    v_cache: Tensor,
    k: Tensor | None = None,  # [B, T, K, D]
    v: Tensor | None = None,
    *,
    cache_seqlens: Tensor,
    cache_batch_idx: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """[B, T, H, D]. With k and v, they are written behind the cache_seqlens tokens first; without, those are all.

    Query i of T sees the first length - T + i + 1 tokens, and a query that sees none gets 0. What lies before the
    length of a slot is read even where a mask hides it, so NaN there shows; what lies behind it is not read.
    """
    num_rows, num_tokens, num_heads, size = q.shape
    assert causal
    assert k_cache.stride(-1) == v_cache.stride(-1) == 1
    for integers in (cache_seqlens, cache_batch_idx):
        assert integers is None or (integers.dtype, integers.shape) == (torch.int32, (num_rows,))
        assert integers is None or integers.is_contiguous()
    block_size = k_cache.shape[1]
    assert block_table is None or (block_table.dtype == torch.int32 and block_table.stride(-1) == 1)
    assert block_table is None or (block_size % 256 == 0 and cache_batch_idx is None)
    scale = size**-0.5 if softmax_scale is None else softmax_scale
    group = num_heads // k_cache.shape[2]
    output = torch.zeros_like(q)
    for row in range(num_rows):
        blocks = [row if cache_batch_idx is None else int(cache_batch_idx[row])]
        if block_table is not None:
            blocks = block_table[row].tolist()
        length = int(cache_seqlens[row])
        if k is not None:
            for token in range(num_tokens):
                place = blocks[(length + token) // block_size], (length + token) % block_size
                k_cache[place], v_cache[place] = k[row, token], v[row, token]
            length += num_tokens
        assert length <= len(blocks) * block_size, "reads beyond the cache"
        used = blocks[: -(-length // block_size)]
        keys, values = (cache[used].flatten(0, 1)[:length].repeat_interleave(group, 1) for cache in (k_cache, v_cache))
        mask = torch.ones(num_tokens, length, dtype=torch.bool, device=q.device).tril(length - num_tokens)
        scores = torch.einsum("thd,lhd->htl", q[row].float(), keys.float()) * scale
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).masked_fill(~mask.any(-1)[None, :, None], 0.0)
        output[row] = torch.einsum("htl,lhd->thd", weights, values.float()).to(q.dtype)
    return output
