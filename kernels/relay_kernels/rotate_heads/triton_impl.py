# ruff: noqa: N803 - compile-time arguments are capitals in Triton
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Rotary positions, and the norm of each head before them, in Triton.

Shapes: N rows, T tokens, H query heads, K key heads, D head size. A program owns one token and a tile of its query or
of its key heads, whose halves are two tiles [BLOCK_H, BLOCK_D].
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from relay_kernels.backends import on_device

TILE = 2048
"""Values of a tile, padding included: 16 heads of 128."""


@triton.jit
def _rotate_tile(
    heads_ptr,
    output_ptr,
    weight_ptr,
    stride_h,
    head,
    num_heads,
    cosine_ptr,
    sine_ptr,
    eps,
    HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Turns the heads `head` [BLOCK_H] of one token."""
    dim = tl.arange(0, BLOCK_D)
    in_half = dim < HALF
    mask = (head < num_heads)[:, None] & in_half[None, :]
    pointers = heads_ptr + head.to(tl.int64)[:, None] * stride_h + dim[None, :]
    first = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(pointers + HALF, mask=mask, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)  # [BLOCK_H]
        scale = 1.0 / tl.sqrt(squares / (2 * HALF) + eps)
        first *= scale[:, None] * tl.load(weight_ptr + dim, mask=in_half, other=0.0).to(tl.float32)[None, :]
        second *= scale[:, None] * tl.load(weight_ptr + HALF + dim, mask=in_half, other=0.0).to(tl.float32)[None, :]
    first_cosine = tl.load(cosine_ptr + dim, mask=in_half, other=0.0).to(tl.float32)[None, :]
    second_cosine = tl.load(cosine_ptr + HALF + dim, mask=in_half, other=0.0).to(tl.float32)[None, :]
    first_sine = tl.load(sine_ptr + dim, mask=in_half, other=0.0).to(tl.float32)[None, :]
    second_sine = tl.load(sine_ptr + HALF + dim, mask=in_half, other=0.0).to(tl.float32)[None, :]
    target = output_ptr + head[:, None] * (2 * HALF) + dim[None, :]
    dtype = output_ptr.dtype.element_ty
    tl.store(target, (first * first_cosine - second * first_sine).to(dtype), mask=mask)
    tl.store(target + HALF, (second * second_cosine + first * second_sine).to(dtype), mask=mask)


@triton.jit
def _rotate_kernel(
    query_ptr,
    key_ptr,
    cosine_ptr,
    sine_ptr,
    query_norm_ptr,
    key_norm_ptr,
    query_output_ptr,
    key_output_ptr,
    query_stride_n,
    query_stride_t,
    query_stride_h,
    key_stride_n,
    key_stride_t,
    key_stride_h,
    cosine_stride_n,
    cosine_stride_t,
    sine_stride_n,
    sine_stride_t,
    num_tokens,
    num_heads,
    num_kv_heads,
    num_query_tiles,
    eps,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One token's tile of query heads, or of key heads in the programs behind those."""
    flat = tl.program_id(0).to(tl.int64)
    row, token = flat // num_tokens, flat % num_tokens
    tile = tl.program_id(1)
    cosine = cosine_ptr + row * cosine_stride_n + token * cosine_stride_t
    sine = sine_ptr + row * sine_stride_n + token * sine_stride_t
    if tile < num_query_tiles:
        _rotate_tile(
            query_ptr + row * query_stride_n + token * query_stride_t,
            query_output_ptr + flat * num_heads * 2 * HALF,
            query_norm_ptr,
            query_stride_h,
            tile * BLOCK_H + tl.arange(0, BLOCK_H),
            num_heads,
            cosine,
            sine,
            eps,
            HALF,
            BLOCK_D,
        )
    else:
        _rotate_tile(
            key_ptr + row * key_stride_n + token * key_stride_t,
            key_output_ptr + flat * num_kv_heads * 2 * HALF,
            key_norm_ptr,
            key_stride_h,
            (tile - num_query_tiles) * BLOCK_H + tl.arange(0, BLOCK_H),
            num_kv_heads,
            cosine,
            sine,
            eps,
            HALF,
            BLOCK_D,
        )


def rotate_heads_triton(
    query: Tensor,
    key: Tensor,
    cosine: Tensor,
    sine: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """`rotate_heads`: ([N, T, H, D], [N, T, K, D]), in one launch."""
    outputs = (
        torch.empty(query.shape, dtype=query.dtype, device=query.device),
        torch.empty(key.shape, dtype=key.dtype, device=key.device),
    )
    num_rows, num_tokens, num_heads, size = query.shape
    num_kv_heads = key.shape[2]
    if num_rows * num_tokens * (num_heads + num_kv_heads) * size == 0:
        return outputs
    block_d = triton.next_power_of_2(size // 2)
    block_h = min(triton.next_power_of_2(max(num_heads, num_kv_heads)), max(TILE // (2 * block_d), 1))
    num_query_tiles, num_key_tiles = triton.cdiv(num_heads, block_h), triton.cdiv(num_kv_heads, block_h)
    with on_device(query):
        _rotate_kernel[(num_rows * num_tokens, num_query_tiles + num_key_tiles)](
            query,
            key,
            cosine,
            sine,
            query_norm,
            key_norm,
            *outputs,
            *query.stride()[:3],
            *key.stride()[:3],
            *cosine.stride()[:2],
            *sine.stride()[:2],
            num_tokens,
            num_heads,
            num_kv_heads,
            num_query_tiles,
            float(eps),
            HALF=size // 2,
            BLOCK_H=block_h,
            BLOCK_D=block_d,
            num_warps=4 if block_h * block_d >= 512 else 1,
        )
    return outputs
