"""Decode attention and the append in Triton, held to their definition."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import EXACTLY
from relay_kernels.decode_attention import append_kv, decode_attention, triton_impl

GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = (
    GPU_DTYPES if torch.cuda.is_available() else (torch.float32, torch.float16)
)  # the interpreter's bf16 product is wrong


def make(device, dtype, *, lengths, tokens=1, heads=4, kv_heads=2, size=64, capacity=40, spread=1.0):
    generator = torch.Generator().manual_seed(len(lengths) + tokens)

    def draw(*shape):
        return (torch.randn(*shape, generator=generator) * spread).to(device, dtype)

    rows = len(lengths)
    return {
        "query": draw(rows, tokens, heads, size),
        "key_cache": draw(rows, capacity, kv_heads, size),
        "value_cache": draw(rows, capacity, kv_heads, size),
        "cache_seqlens": torch.tensor(lengths, dtype=torch.int32, device=device),
        "new_key": draw(rows, tokens, kv_heads, size),
        "new_value": draw(rows, tokens, kv_heads, size),
    }


def plain_attention(query, key_cache, value_cache, cache_seqlens, new_key, new_value, num_new=None):
    """Attention row by row at the dtype of the inputs, as one writes it first."""
    output = torch.zeros_like(query)
    group = query.shape[2] // key_cache.shape[2]
    for row in range(query.shape[0]):
        length = int(cache_seqlens[row])
        for token in range(query.shape[1] if num_new is None else int(num_new[row])):
            key = torch.cat([key_cache[row, :length], new_key[row, : token + 1]]).repeat_interleave(group, 1)
            value = torch.cat([value_cache[row, :length], new_value[row, : token + 1]]).repeat_interleave(group, 1)
            scores = torch.einsum("hd,lhd->hl", query[row, token], key) * query.shape[-1] ** -0.5
            output[row, token] = torch.einsum("hl,lhd->hd", torch.softmax(scores, -1), value)
    return output


def check(inputs, assert_as_exact_as, num_new=None, **launch):
    plain = plain_attention(**inputs, num_new=num_new)
    truth = plain_attention(
        **{k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}, num_new=num_new
    )
    for is_appending in (True, False):
        ours = {name: tensor.clone() for name, tensor in inputs.items()}
        caches = (ours["key_cache"], ours["value_cache"])
        expected = [cache.clone() for cache in caches]
        append_kv(
            *expected, ours["new_key"], ours["new_value"], ours["cache_seqlens"], num_new=num_new, backend="reference"
        )
        if not is_appending:
            append_kv(
                *caches,
                ours.pop("new_key"),
                ours.pop("new_value"),
                ours["cache_seqlens"],
                num_new=num_new,
                backend="triton",
            )
        output = decode_attention(**ours, num_new=num_new, backend="triton", **launch)
        assert_as_exact_as(output, plain, truth)
        assert torch.equal(caches[0], expected[0])
        assert torch.equal(caches[1], expected[1])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 5])
def test_error_is_that_of_plain_attention(device, dtype, tokens, assert_as_exact_as):
    check(make(device, dtype, lengths=[0, 1, 35, 17], tokens=tokens), assert_as_exact_as)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("size", [64, 80, 96, 128, 256])
def test_every_head_size_when_the_row_is_split(device, size, monkeypatch, assert_as_exact_as):
    monkeypatch.setattr(triton_impl, "SPLIT_LENGTH", 16)
    check(make(device, torch.float32, lengths=[3, 39, 16], size=size), assert_as_exact_as)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (8, 1), (6, 2), (7, 1)])
def test_every_grouping_of_heads_with_padded_chunks(device, heads, kv_heads, monkeypatch, assert_as_exact_as):
    monkeypatch.setattr(triton_impl, "SPLIT_LENGTH", 16)
    inputs = make(device, torch.float32, lengths=[0, 20, 7, 31], tokens=3, heads=heads, kv_heads=kv_heads)
    check(inputs, assert_as_exact_as, num_new=torch.tensor([3, 1, 0, 2], device=device))


@pytest.mark.usefixtures("poisoned_memory")
def test_chunks_longer_than_a_tile(device, assert_as_exact_as):
    inputs = make(device, torch.float32, lengths=[0, 9], tokens=75, capacity=90)
    check(inputs, assert_as_exact_as, num_new=torch.tensor([75, 70], device=device, dtype=torch.int32))


def test_more_splits_than_the_merge_holds_at_once(device, monkeypatch, assert_as_exact_as):
    monkeypatch.setattr(triton_impl, "SPLIT_LENGTH", 2)
    check(make(device, torch.float32, lengths=[39, 1]), assert_as_exact_as)


def test_extreme_scores_stay_finite(device, assert_as_exact_as):
    check(make(device, torch.float32, lengths=[8, 30], spread=60.0), lambda *a: assert_as_exact_as(*a, scale=60.0))


def test_nothing_beyond_a_row_s_length_is_read(device):
    inputs = make(device, torch.float32, lengths=[4, 20])
    expected = decode_attention(**{k: v.clone() for k, v in inputs.items()}, backend="reference")
    inputs["key_cache"][0, 4:], inputs["value_cache"][0, 4:] = float("nan"), float("inf")
    torch.testing.assert_close(decode_attention(**inputs, backend="triton"), expected, atol=2e-6, rtol=1e-5)


def test_slots_and_strided_caches(device):
    inputs = make(device, torch.float32, lengths=[4, 20, 11])
    slots = torch.tensor([2, 0, 1], device=device)
    heads_first = {name: inputs[name].transpose(1, 2).contiguous() for name in ("key_cache", "value_cache")}
    expected = decode_attention(
        **{k: v.clone() for k, v in inputs.items()}, block_table=slots[:, None], backend="reference"
    )
    query = torch.cat([inputs["query"], inputs["query"]], dim=-2)[:, :, : inputs["query"].shape[2]]
    views = {name: cache.transpose(1, 2)[:, :30] for name, cache in heads_first.items()}
    actual = decode_attention(**{**inputs, **views, "query": query}, block_table=slots[:, None], backend="triton")
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5)
    assert torch.equal(heads_first["key_cache"][2, :, 4], inputs["new_key"][0, 0])


def test_no_rows_and_all_rows_parked(device):
    inputs = make(device, torch.float32, lengths=[4, 20])
    empty = {
        name: tensor[:0] if tensor.dim() == 1 or tensor.shape[1] == 1 else tensor for name, tensor in inputs.items()
    }
    assert decode_attention(**empty, backend="triton").shape == (0, 1, 4, 64)
    before = inputs["key_cache"].clone()
    parked = decode_attention(**inputs, num_new=torch.zeros(2, dtype=torch.int64, device=device), backend="triton")
    assert not parked.any()
    assert torch.equal(inputs["key_cache"], before)


def test_a_row_without_new_tokens_may_be_longer_than_the_view_of_the_cache(device):
    inputs = make(device, torch.float32, lengths=[3, 1000])
    key_cache = inputs["key_cache"].clone()
    output = decode_attention(**inputs, num_new=torch.tensor([1, 0], device=device), backend="triton")
    assert not output[1].any()
    assert output[0].any()
    assert torch.equal(inputs["key_cache"][1], key_cache[1])


def test_a_row_is_the_same_alone_and_in_a_batch(device, monkeypatch):
    monkeypatch.setattr(triton_impl, "SPLIT_LENGTH", 16)
    inputs = make(device, torch.float32, lengths=[4, 37, 11])
    whole = decode_attention(**{k: v.clone() for k, v in inputs.items()}, backend="triton")
    alone = decode_attention(**{k: v[1:2].clone() for k, v in inputs.items()}, backend="triton")
    torch.testing.assert_close(alone, whole[1:2], **EXACTLY)
