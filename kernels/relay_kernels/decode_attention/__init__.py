"""Attention of one new token, or a chunk of them, over a paged key/value cache, and the append before it.

Shapes: B rows, T new tokens a row (right-padded), H query heads, K key/value heads (H = K * group), D head size,
N KV blocks of P tokens each, M blocks of a row at most. Caches are [N, P, K, D] in any strides whose last one is 1: a
[N, K, P, D] cache is passed as its `transpose(1, 2)` view. Token t of row b lies in block block_table[b, t // P] at
t % P; a slice `block_table[:, :m]` spares the work beyond the longest row. Rows of one block each (M = 1), such as a
cache that has one slot of the longest length for each sequence, may have blocks of any size, others a multiple of 16.
"""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from relay_kernels.backends import NO_FLASH, choose_backend_for
from relay_kernels.decode_attention.checks import check_append, check_attention
from relay_kernels.decode_attention.flash_impl import decode_attention_flash, why_not_flash
from relay_kernels.decode_attention.native_impl import append_kv_native, decode_attention_native
from relay_kernels.decode_attention.reference import append_kv_reference, decode_attention_reference

MAX_HEAD_SIZE = 256
"""Largest head whose tiles fit the shared memory of all targets."""


def append_kv(
    key_cache: Tensor,
    value_cache: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    cache_seqlens: Tensor,
    *,
    num_new: Tensor | None = None,
    block_table: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Writes the first num_new[b] new tokens of row b behind the cache_seqlens[b] tokens of its blocks, in place.

    key_cache, value_cache: [N, P, K, D] float; new_key, new_value: [B, T, K, D] of the same dtype; cache_seqlens: [B]
    int32 or int64, tokens already in the cache (left unchanged); num_new: [B] int, None for T everywhere; block_table:
    [B, M] int, None for row b = block b. Rows may share blocks that no row appends to. What the table holds behind a
    row's tokens may be anything; so may the blocks and the length (of 0 or more) of a row without new tokens. Raises
    ValueError that names the argument. Values on a CUDA device are not read back. There Triton drops tokens that do not
    fit or whose block does not exist and all of a row of negative length; rows that append to one block overwrite each
    other. FlashAttention checks no blocks.
    """
    arguments = (key_cache, value_cache, new_key, new_value, cache_seqlens, num_new, block_table)
    chosen = choose_backend_for(
        "append_kv", backend, key_cache, names=("key_cache",), why_not=_why_not_triton(key_cache)
    )
    if chosen == "native":
        append_kv_native(*arguments)
        return
    check_append(*arguments)
    if chosen == "triton":
        from relay_kernels.decode_attention.triton_impl import append_kv_triton

        append_kv_triton(*arguments)
    else:
        append_kv_reference(*arguments)


def decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    new_key: Tensor | None = None,
    new_value: Tensor | None = None,
    num_new: Tensor | None = None,
    block_table: Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale * q k^T) v of every query head, [B, T, H, D] in the dtype of `query`. No gradient.

    New token t of row b sees the first cache_seqlens[b] tokens of its blocks and new tokens 0..t; 0 if t >= num_new[b].
    query: [B, T, H, D]; key_cache, value_cache: [N, P, K, D]; cache_seqlens: [B] int32 or int64, tokens in the cache
    *before* the new ones. With new_key and new_value [B, T, K, D] the new tokens are also appended to the caches (as
    `append_kv` would); without them they are already there. num_new, block_table: as in `append_kv`. scale: 1 / sqrt(D)
    by default. backend="flash" is FlashAttention, which never runs unasked. Raises ValueError that names the argument.
    Fake tensors, which have shapes and no values, give fake ones.
    """
    if isinstance(query, FakeTensor):
        output: Tensor = query.new_empty(query.shape)
        return output
    arguments = (query, key_cache, value_cache, cache_seqlens, new_key, new_value, num_new, block_table)
    no_flash = why_not_flash(query, key_cache, block_table) if backend == "flash" else NO_FLASH
    chosen = choose_backend_for(
        "decode_attention",
        backend,
        query,
        names=("query",),
        why_not=_why_not_triton(key_cache),
        no_flash=no_flash,
    )
    if chosen == "native":
        return decode_attention_native(*arguments, scale)
    check_attention(*arguments, scale)
    scale = max(query.shape[-1], 1) ** -0.5 if scale is None else scale
    if chosen == "flash":
        return decode_attention_flash(*arguments, scale)
    if chosen == "triton":
        from relay_kernels.decode_attention.triton_impl import decode_attention_triton

        return decode_attention_triton(*arguments, scale)
    return decode_attention_reference(*arguments, scale)


def _why_not_triton(key_cache: Tensor) -> str | None:
    """The op's own reason against Triton."""
    if key_cache.ndim and key_cache.shape[-1] > MAX_HEAD_SIZE:
        return f"its head sizes end at {MAX_HEAD_SIZE}, not {key_cache.shape[-1]}"
    return None
