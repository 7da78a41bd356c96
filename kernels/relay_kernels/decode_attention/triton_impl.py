# ruff: noqa: N803, PLR0915 - compile-time arguments are capitals in Triton, and a kernel is one function
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Decode attention and the cache append in Triton: flash decoding, split over the cache, grouped heads in one tile.

Shapes: B rows, T new tokens, H query heads, K key/value heads, G = H / K, D head size, N blocks of P tokens, M blocks
of a row.

A program owns one row, one key/value head, BLOCK_M of its T * G queries and SPLIT_LENGTH cached positions. It reads
each cached key and value once for all G heads. Split 0 also takes the new tokens, causal among themselves: from where
they lie in the cache, or from `new_key` and `new_value`, and then appends them (where one block holds all queries; a
longer chunk is appended first). A second kernel merges the splits. The split length is a constant, not a function of
B, so that a row's result does not depend on its neighbours.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from relay_kernels.backends import on_device

SPLIT_LENGTH = 512
"""Cached positions of one program: 64 rows, 8 heads and 4,096 positions make 4,096 programs for 132 multiprocessors."""
MERGE_CHUNK = 16
"""Splits that the merge holds at once."""
LOG2_E = 1.4426950408889634


@triton.jit
def _attend(
    accumulator,
    peak,
    total,
    query,
    key_pointers,
    value_pointers,
    is_position,
    is_visible,
    in_head,
    qk_scale,
    PRECISION: tl.constexpr,
):
    """Online softmax over one tile of keys: the new accumulator [M, D], peak [M] (base 2) and total [M]."""
    mask = is_position[:, None] & in_head[None, :]
    key = tl.load(key_pointers, mask=mask, other=0.0)  # [N, D]
    value = tl.load(value_pointers, mask=mask, other=0.0)
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * qk_scale  # [M, N]
    scores = tl.where(is_visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=1))
    # A query that has seen nothing yet keeps a peak of -inf; 0 in its place keeps exp2(-inf - peak) at 0 and not NaN.
    safe_peak = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    rescale = tl.exp2(peak - safe_peak)
    weights = tl.exp2(scores - safe_peak[:, None])
    total = total * rescale + tl.sum(weights, axis=1)
    accumulator = accumulator * rescale[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
    return accumulator, new_peak, total, key, value


@triton.jit
def _locate(table_ptr, only_block, position, is_position, num_blocks, BLOCK_SIZE: tl.constexpr):
    """Block and place in it of a row's positions, int64, and which of them exist. table_ptr: the row's blocks.

    BLOCK_SIZE 0: the row has one block, `only_block`.
    """
    if BLOCK_SIZE == 0:
        return only_block + tl.zeros_like(position).to(tl.int64), position.to(tl.int64), is_position
    block = tl.load(table_ptr + position // BLOCK_SIZE, mask=is_position, other=0).to(tl.int64)
    return block, (position % BLOCK_SIZE).to(tl.int64), is_position & (block >= 0) & (block < num_blocks)


@triton.jit
def _split_kernel(
    query_ptr,
    key_cache_ptr,
    value_cache_ptr,
    new_key_ptr,
    new_value_ptr,
    cache_seqlens_ptr,
    num_new_ptr,
    table_ptr,
    output_ptr,
    partial_ptr,
    lse_ptr,
    query_stride_b,
    query_stride_t,
    query_stride_h,
    key_stride_n,
    key_stride_l,
    key_stride_k,
    value_stride_n,
    value_stride_l,
    value_stride_k,
    new_key_stride_b,
    new_key_stride_t,
    new_key_stride_k,
    new_value_stride_b,
    new_value_stride_t,
    new_value_stride_k,
    table_stride_b,
    num_tokens,
    num_kv_heads,
    capacity,
    num_blocks,
    num_splits,
    split_length,
    qk_scale,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_APPENDING: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One split of one row, key/value head and block of queries: its output, or its part with log-sum-exp (base 2)."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = (tl.program_id(1) % num_kv_heads).to(tl.int64)
    query_block = tl.program_id(1) // num_kv_heads
    split = tl.program_id(2)

    cached = tl.load(cache_seqlens_ptr + row).to(tl.int64)
    length = tl.minimum(tl.maximum(cached, 0), capacity).to(tl.int32)
    num_new = tl.load(num_new_ptr + row) if num_new_ptr is not None else num_tokens
    # A row of a negative length, or of one block that does not exist, has no new tokens.
    table_row = table_ptr + row * table_stride_b if table_ptr is not None else table_ptr
    only_block = row
    if BLOCK_SIZE == 0 and table_ptr is not None:
        only_block = tl.load(table_row).to(tl.int64)
    is_row = (cached >= 0) & ((BLOCK_SIZE > 0) | ((only_block >= 0) & (only_block < num_blocks)))
    num_new = tl.where(is_row, tl.minimum(num_new, num_tokens), 0).to(tl.int32)

    index = query_block * BLOCK_M + tl.arange(0, BLOCK_M)
    token = index // GROUP  # [M]
    head = kv_head * GROUP + index % GROUP
    is_query = token < num_tokens
    dim = tl.arange(0, BLOCK_D)
    in_head = dim < HEAD_SIZE
    num_heads = num_kv_heads * GROUP
    flat = (row * num_tokens + token) * num_heads + head  # [M]: index into [B, T, H]

    start = split * split_length
    is_idle = ((start >= length) & (split > 0)) | (query_block * BLOCK_M >= num_new * GROUP)
    if is_idle:
        if IS_SPLIT:
            tl.store(lse_ptr + flat * num_splits + split, float("-inf"), mask=is_query)
        else:
            zero = tl.zeros([BLOCK_M, BLOCK_D], tl.float32).to(output_ptr.dtype.element_ty)
            tl.store(
                output_ptr + flat[:, None] * HEAD_SIZE + dim[None, :], zero, mask=is_query[:, None] & in_head[None, :]
            )
        return

    query_pointers = (
        query_ptr + row * query_stride_b + token.to(tl.int64)[:, None] * query_stride_t + head[:, None] * query_stride_h
    )
    query = tl.load(query_pointers + dim[None, :], mask=is_query[:, None] & in_head[None, :], other=0.0)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    column = tl.arange(0, BLOCK_N)
    is_real = is_query & (token < num_new)

    key_base = key_cache_ptr + kv_head * key_stride_k + dim[None, :]
    value_base = value_cache_ptr + kv_head * value_stride_k + dim[None, :]
    stop = tl.minimum(start + split_length, length)
    for first in range(start, stop, BLOCK_N):
        position = first + column
        block, place, is_position = _locate(table_row, only_block, position, position < stop, num_blocks, BLOCK_SIZE)
        accumulator, peak, total, _, _ = _attend(
            accumulator,
            peak,
            total,
            query,
            key_base + (block * key_stride_n + place * key_stride_l)[:, None],
            value_base + (block * value_stride_n + place * value_stride_l)[:, None],
            is_position,
            is_position[None, :] & is_real[:, None],
            in_head,
            qk_scale,
            PRECISION,
        )

    if split == 0:
        # The new tokens: beside the cache, or in it from position `length` on.
        last_token = tl.minimum((query_block * BLOCK_M + BLOCK_M - 1) // GROUP + 1, num_new)
        for first in range(0, last_token, BLOCK_N):
            other = first + column
            position = length + other
            is_other = (other < last_token) & (position < capacity)
            block, place, is_other = _locate(table_row, only_block, position, is_other, num_blocks, BLOCK_SIZE)
            key_places = key_base + (block * key_stride_n + place * key_stride_l)[:, None]
            value_places = value_base + (block * value_stride_n + place * value_stride_l)[:, None]
            if IS_APPENDING:
                far = other.to(tl.int64)[:, None]
                fresh_key = new_key_ptr + row * new_key_stride_b + kv_head * new_key_stride_k + dim[None, :]
                fresh_value = new_value_ptr + row * new_value_stride_b + kv_head * new_value_stride_k + dim[None, :]
                fresh_key += far * new_key_stride_t
                fresh_value += far * new_value_stride_t
            else:
                fresh_key = key_places
                fresh_value = value_places
            accumulator, peak, total, key, value = _attend(
                accumulator,
                peak,
                total,
                query,
                fresh_key,
                fresh_value,
                is_other,
                is_other[None, :] & (other[None, :] <= token[:, None]) & is_real[:, None],
                in_head,
                qk_scale,
                PRECISION,
            )
            if IS_APPENDING:
                mine = is_other[:, None] & in_head[None, :]
                tl.store(key_places, key, mask=mine)
                tl.store(value_places, value, mask=mine)

    is_seen = total > 0.0
    normal = accumulator / tl.where(is_seen, total, 1.0)[:, None]
    if IS_SPLIT:
        lse = tl.where(is_seen, peak + tl.log2(tl.where(is_seen, total, 1.0)), float("-inf"))
        tl.store(lse_ptr + flat * num_splits + split, lse, mask=is_query)
        target_ptr = partial_ptr + (flat * num_splits + split)[:, None] * HEAD_SIZE + dim[None, :]
        tl.store(target_ptr, normal, mask=is_query[:, None] & in_head[None, :])
    else:
        target_ptr = output_ptr + flat[:, None] * HEAD_SIZE + dim[None, :]
        tl.store(target_ptr, normal.to(output_ptr.dtype.element_ty), mask=is_query[:, None] & in_head[None, :])


@triton.jit
def _merge_kernel(
    partial_ptr,
    lse_ptr,
    output_ptr,
    num_splits,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """One query's output from its splits: their mean weighted by 2 ** lse; 0 where no split saw a key."""
    flat = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, BLOCK_D)
    in_head = dim < HEAD_SIZE
    accumulator = tl.zeros([BLOCK_D], tl.float32)
    peak = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for first in range(0, num_splits, CHUNK):
        split = first + tl.arange(0, CHUNK)
        lse = tl.load(lse_ptr + flat * num_splits + split, mask=split < num_splits, other=float("-inf"))  # [CHUNK]
        is_seen = lse > float("-inf")  # splits beyond the row's length left their part unwritten
        new_peak = tl.maximum(peak, tl.max(lse, axis=0))
        safe_peak = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weight = tl.exp2(lse - safe_peak)
        pointers = partial_ptr + (flat * num_splits + split)[:, None] * HEAD_SIZE + dim[None, :]
        part = tl.load(pointers, mask=is_seen[:, None] & in_head[None, :], other=0.0)  # [CHUNK, D]
        rescale = tl.exp2(peak - safe_peak)
        accumulator = accumulator * rescale + tl.sum(part * weight[:, None], axis=0)
        total = total * rescale + tl.sum(weight, axis=0)
        peak = new_peak
    output = accumulator / tl.where(total > 0.0, total, 1.0)
    tl.store(output_ptr + flat * HEAD_SIZE + dim, output.to(output_ptr.dtype.element_ty), mask=in_head)


@triton.jit
def _append_kernel(
    key_cache_ptr,
    value_cache_ptr,
    new_key_ptr,
    new_value_ptr,
    cache_seqlens_ptr,
    num_new_ptr,
    table_ptr,
    key_stride_n,
    key_stride_l,
    key_stride_k,
    value_stride_n,
    value_stride_l,
    value_stride_k,
    new_key_stride_b,
    new_key_stride_t,
    new_key_stride_k,
    new_value_stride_b,
    new_value_stride_t,
    new_value_stride_k,
    table_stride_b,
    num_tokens,
    capacity,
    num_blocks,
    HEAD_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """BLOCK_T new tokens of one row and key/value head, copied behind the row's cached ones."""
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    dim = tl.arange(0, BLOCK_D)
    length = tl.load(cache_seqlens_ptr + row).to(tl.int64)
    num_new = tl.load(num_new_ptr + row) if num_new_ptr is not None else num_tokens
    # A row of a negative length, or of one block that does not exist, has no new tokens; a length near 2 ** 63 no room.
    table_row = table_ptr + row * table_stride_b if table_ptr is not None else table_ptr
    only_block = row
    if BLOCK_SIZE == 0 and table_ptr is not None:
        only_block = tl.load(table_row).to(tl.int64)
    is_row = (length >= 0) & (length < capacity)
    is_row = is_row & ((BLOCK_SIZE > 0) | ((only_block >= 0) & (only_block < num_blocks)))
    position = length + token
    is_new = is_row & (token < num_new) & (token < num_tokens) & (position < capacity)
    block, place, is_new = _locate(table_row, only_block, position, is_new, num_blocks, BLOCK_SIZE)
    mask = is_new[:, None] & (dim < HEAD_SIZE)[None, :]
    key_places = key_cache_ptr + kv_head * key_stride_k + (block * key_stride_n + place * key_stride_l)[:, None]
    value_places = (
        value_cache_ptr + kv_head * value_stride_k + (block * value_stride_n + place * value_stride_l)[:, None]
    )
    token = token.to(tl.int64)[:, None]
    key = tl.load(
        new_key_ptr + row * new_key_stride_b + kv_head * new_key_stride_k + token * new_key_stride_t + dim[None, :],
        mask=mask,
    )
    value = tl.load(
        new_value_ptr
        + row * new_value_stride_b
        + kv_head * new_value_stride_k
        + token * new_value_stride_t
        + dim[None, :],
        mask=mask,
    )
    tl.store(key_places + dim[None, :], key, mask=mask)
    tl.store(value_places + dim[None, :], value, mask=mask)


def append_kv_triton(
    key_cache: Tensor,
    value_cache: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    cache_seqlens: Tensor,
    num_new: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """`append_kv`, in place, in one launch."""
    num_rows, num_tokens, num_kv_heads, head_size = new_key.shape
    if new_key.numel() == 0:
        return
    table, table_stride, capacity, block_size = _paging(key_cache, block_table)
    block_t = min(triton.next_power_of_2(num_tokens), 16)
    with on_device(key_cache):
        _append_kernel[(num_rows, num_kv_heads, triton.cdiv(num_tokens, block_t))](
            key_cache,
            value_cache,
            new_key,
            new_value,
            cache_seqlens.contiguous(),
            num_new if num_new is None else num_new.contiguous(),
            table,
            *key_cache.stride()[:3],
            *value_cache.stride()[:3],
            *new_key.stride()[:3],
            *new_value.stride()[:3],
            table_stride,
            num_tokens,
            capacity,
            key_cache.shape[0],
            HEAD_SIZE=head_size,
            BLOCK_SIZE=block_size,
            BLOCK_T=block_t,
            BLOCK_D=triton.next_power_of_2(head_size),
            num_warps=2,
        )


def decode_attention_triton(
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
    """`decode_attention`, [B, T, H, D], in one launch; merging splits and appending a long chunk add one each."""
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if output.numel() == 0:
        return output
    num_rows, num_tokens, num_heads, head_size = query.shape
    num_kv_heads = key_cache.shape[2]
    table, table_stride, capacity, block_size = _paging(key_cache, block_table)
    num_queries = num_tokens * num_heads // num_kv_heads
    tiles = _tiles(num_queries, head_size, query.dtype)
    query_blocks = triton.cdiv(num_queries, tiles["BLOCK_M"])
    if new_key is not None and new_value is not None and query_blocks > 1:
        append_kv_triton(key_cache, value_cache, new_key, new_value, cache_seqlens, num_new, block_table)
        new_key = new_value = None
    num_splits = triton.cdiv(capacity, SPLIT_LENGTH) if query_blocks == 1 else 1
    part_shape = (num_rows, num_tokens, num_heads, num_splits) if num_splits > 1 else (0,)
    partial = torch.empty((*part_shape, head_size), dtype=torch.float32, device=query.device)
    lse = torch.empty(part_shape, dtype=torch.float32, device=query.device)
    # Tokens already in the cache are new tokens that lie there, from the row's length on.
    fresh_key, fresh_value = (key_cache, value_cache) if new_key is None or new_value is None else (new_key, new_value)
    with on_device(query):
        _split_kernel[(num_rows, num_kv_heads * query_blocks, num_splits)](
            query,
            key_cache,
            value_cache,
            fresh_key,
            fresh_value,
            cache_seqlens.contiguous(),
            num_new if num_new is None else num_new.contiguous(),
            table,
            output,
            partial,
            lse,
            *query.stride()[:3],
            *key_cache.stride()[:3],
            *value_cache.stride()[:3],
            *fresh_key.stride()[:3],
            *fresh_value.stride()[:3],
            table_stride,
            num_tokens,
            num_kv_heads,
            capacity,
            key_cache.shape[0],
            num_splits,
            SPLIT_LENGTH if num_splits > 1 else capacity,
            float(scale) * LOG2_E,
            GROUP=num_heads // num_kv_heads,
            HEAD_SIZE=head_size,
            BLOCK_SIZE=block_size,
            IS_APPENDING=new_key is not None,
            IS_SPLIT=num_splits > 1,
            PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
            **tiles,
        )
        if num_splits > 1:
            _merge_kernel[(num_rows * num_tokens * num_heads,)](
                partial,
                lse,
                output,
                num_splits,
                HEAD_SIZE=head_size,
                BLOCK_D=tiles["BLOCK_D"],
                CHUNK=MERGE_CHUNK,
                num_warps=2,
            )
    return output


def _paging(key_cache: Tensor, block_table: Tensor | None) -> tuple[Tensor | None, int, int, int]:
    """The table with contiguous rows, the stride of its rows, tokens a row can hold, and BLOCK_SIZE of the kernels."""
    block_size = key_cache.shape[1]
    if block_table is None:
        return None, 0, block_size, 0
    num_blocks = block_table.shape[1]
    if num_blocks > 1 and block_table.stride(1) != 1:
        block_table = block_table.contiguous()
    return block_table, block_table.stride(0), num_blocks * block_size, block_size if num_blocks > 1 else 0


def _tiles(num_queries: int, head_size: int, dtype: torch.dtype) -> dict[str, int]:
    """Tile sizes and launch options for `num_queries` packed queries.

    16-bit: 16 KiB of keys a stage, as many values, three stages. fp32 multiplies outside the tensor cores, where larger
    tiles spill.
    """
    block_d = triton.next_power_of_2(head_size)
    if dtype == torch.float32:
        return {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_D": block_d, "num_warps": 4, "num_stages": 2}
    block_m = min(max(triton.next_power_of_2(num_queries), 16), 64)
    block_n = min(max(8192 // block_d, 16), 128 if block_m == 16 else 64)
    num_warps = 8 if block_m * block_d >= 64 * 256 else 4
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d, "num_warps": num_warps, "num_stages": 3}
