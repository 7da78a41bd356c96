"""`decode_attention` of one new token a row, its append included, over caches of 4,096 tokens."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from relay_kernels import decode_attention
from relay_kernels.decode_attention.reference import decode_attention_reference
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels.bars import Bar, ceiling_percent, speedup_over_fastest_rival
from benchmarks.kernels.case import Case, Work, compiled, is_importable
from benchmarks.kernels.gate import Check, judge, judge_equal
from benchmarks.kernels.target import Target

SPREAD = 2.0
"""Deviation of the scores: so few of 4,096 positions hold most of the weight that a lost one shows."""
LARGEST_SCORE = 6 * SPREAD
"""What rounding a score does to its weight grows with the score."""
BUCKET = 32
"""The caches are cut to the bucket that holds the new token, as the decoder cuts them."""
PAGE = 16
WORKSPACE_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class Attention:
    """Arguments of the op: B rows, H query heads, K key/value heads, D head size, L capacity."""

    query: Tensor  # [B, 1, H, D]
    key_cache: Tensor  # [B, L, K, D]
    value_cache: Tensor
    cache_seqlens: Tensor  # [B] int32
    new_key: Tensor  # [B, 1, K, D]
    new_value: Tensor


def draw(target: Target, shape: dict[str, int]) -> Attention:
    num_rows, num_cached, num_heads, num_kv_heads, size = shape.values()
    capacity = -(-(num_cached + 1) // BUCKET) * BUCKET
    return Attention(
        query=target.normal(num_rows, 1, num_heads, size, scale=SPREAD),
        key_cache=target.normal(num_rows, capacity, num_kv_heads, size),
        value_cache=target.normal(num_rows, capacity, num_kv_heads, size),
        cache_seqlens=torch.full((num_rows,), num_cached, dtype=torch.int32, device=target.device),
        new_key=target.normal(num_rows, 1, num_kv_heads, size),
        new_value=target.normal(num_rows, 1, num_kv_heads, size),
    )


def call(inputs: Attention, backend: str) -> Tensor:
    return decode_attention(
        inputs.query, inputs.key_cache, inputs.value_cache, inputs.cache_seqlens,
        new_key=inputs.new_key, new_value=inputs.new_value, backend=backend,
    )  # fmt: skip


def plain(inputs: Attention) -> Tensor:
    """PyTorch's own attention under a mask, after an indexed write."""
    rows = torch.arange(inputs.query.shape[0], device=inputs.query.device)
    inputs.key_cache[rows, inputs.cache_seqlens] = inputs.new_key[:, 0]
    inputs.value_cache[rows, inputs.cache_seqlens] = inputs.new_value[:, 0]
    positions = torch.arange(inputs.key_cache.shape[1], device=inputs.query.device)
    is_visible = positions <= inputs.cache_seqlens[:, None]  # [B, L]
    query, key, value = (x.transpose(1, 2) for x in (inputs.query, inputs.key_cache, inputs.value_cache))
    mask = is_visible[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def check(inputs: Attention, backend: str) -> list[Check]:
    """The output against that of the reference in fp64; the caches bit for bit against the reference's."""
    expected, copies = copy.deepcopy(inputs), copy.deepcopy(inputs)
    call(expected, "reference")
    wide = Attention(*(_widen(getattr(inputs, name)) for name in Attention.__dataclass_fields__))
    truth = call(wide, "reference")
    output = call(inputs, backend)
    rounding = torch.finfo(output.dtype).eps + LARGEST_SCORE * torch.finfo(torch.float32).eps
    return [
        judge("output", output, plain(copies), truth, floor=rounding * float(truth.abs().max())),
        judge_equal("key_cache", inputs.key_cache, expected.key_cache),
        judge_equal("value_cache", inputs.value_cache, expected.value_cache),
    ]


def _widen(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def reference(inputs: Attention) -> Tensor:
    """The reference without the checks before it, which look at values on a CPU."""
    return decode_attention_reference(
        inputs.query, inputs.key_cache, inputs.value_cache, inputs.cache_seqlens,
        inputs.new_key, inputs.new_value, None, None, inputs.query.shape[-1] ** -0.5,
    )  # fmt: skip


class FlashInfer:
    """FlashInfer's paged append and decode. The pages of a slot follow one another; the plan is made once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.plan: tuple[Any, ...] | None = None

    def __call__(self, inputs: Attention) -> Tensor:
        import flashinfer

        if self.plan is None:
            self.plan = self._make_plan(inputs)
        wrapper, row, *pages = self.plan
        caches = tuple(cache.view(-1, PAGE, *cache.shape[2:]) for cache in (inputs.key_cache, inputs.value_cache))
        flashinfer.append_paged_kv_cache(
            inputs.new_key[:, 0], inputs.new_value[:, 0], row, inputs.cache_seqlens, caches, *pages
        )
        return wrapper.run(inputs.query[:, 0], caches)

    def _make_plan(self, inputs: Attention) -> tuple[Any, ...]:
        """The planned wrapper, the rows, and the page table: indices, starts, length of the last page."""
        import flashinfer

        num_rows, capacity, num_kv_heads, size = inputs.key_cache.shape
        num_cached = int(inputs.cache_seqlens[0])
        num_used = num_cached // PAGE + 1  # Pages that hold the cached tokens and the new one.
        row = torch.arange(num_rows, dtype=torch.int32, device=inputs.query.device)
        indices = (row[:, None] * (capacity // PAGE) + torch.arange(num_used, device=row.device)).int().flatten()
        starts = torch.arange(num_rows + 1, dtype=torch.int32, device=row.device) * num_used
        last_page = torch.full_like(row, num_cached % PAGE + 1)
        workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=row.device)
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
        wrapper.plan(
            starts, indices, last_page, inputs.query.shape[2], num_kv_heads, size, PAGE,
            q_data_type=self.dtype, kv_data_type=self.dtype,
        )  # fmt: skip
        return wrapper, row, indices, starts, last_page


def cases(target: Target) -> list[Case]:
    sizes = (64, 4096, 16, 8, 128) if target.is_full else (4, 96, 4, 2, 64)
    shape = dict(zip(("B", "cached", "H", "K", "D"), sizes, strict=True))
    others: dict[str, Work] = {}
    if is_importable("flash_attn"):
        others["FlashAttention"] = partial(call, backend="flash")
    if is_importable("flashinfer"):
        others["FlashInfer"] = FlashInfer(target.dtype)
    num_rows, num_cached, _, num_kv_heads, size = sizes
    return [
        Case(
            op="decode_attention",
            setting="one token, append included",
            shape=shape,
            make_inputs=lambda: draw(target, shape),
            ours=partial(call, backend=target.backend),
            check=partial(check, backend=target.backend),
            num_bytes=2 * num_rows * (num_cached + 1) * num_kv_heads * size * target.dtype.itemsize,
            bars=(
                Bar("% of copy bandwidth", ceiling_percent, 75, 90, is_upper=False),
                Bar("times as fast as the fastest rival", speedup_over_fastest_rival, 1.0, is_upper=False),
            ),
            rivals={
                "reference": reference,
                "torch.compile": compiled(reference),
                "scaled_dot_product_attention": plain,
                **others,
            },
            absent=tuple(name for name in ("FlashAttention", "FlashInfer") if name not in others),
        )
    ]
