"""The definition of decode attention, held to PyTorch's own attention, and its refusals."""

from __future__ import annotations

import pytest
import torch
from relay_kernels.decode_attention import append_kv, decode_attention


def make(rows=3, tokens=2, heads=4, kv_heads=2, size=8, slots=5, capacity=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "query": draw(rows, tokens, heads, size),
        "key_cache": draw(slots, capacity, kv_heads, size),
        "value_cache": draw(slots, capacity, kv_heads, size),
        "cache_seqlens": torch.tensor([0, 5, 14][:rows], dtype=torch.int32),
        "new_key": draw(rows, tokens, kv_heads, size),
        "new_value": draw(rows, tokens, kv_heads, size),
    }


def attend_row(query, key, value):
    """PyTorch's attention of the last T of L positions: [T, H, D] over [L, K, D]."""
    tokens, length = query.shape[0], key.shape[0]
    mask = torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens)
    heads_first = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    output = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)
    return output[0].transpose(0, 1)


def test_each_row_attends_to_its_own_slot_up_to_its_own_length():
    inputs = make()
    slots = torch.tensor([4, 0, 2])
    output = decode_attention(**inputs, slots=slots)
    for row in range(3):
        length = int(inputs["cache_seqlens"][row])
        key = torch.cat([inputs["key_cache"][slots[row], :length], inputs["new_key"][row]])
        value = torch.cat([inputs["value_cache"][slots[row], :length], inputs["new_value"][row]])
        torch.testing.assert_close(output[row], attend_row(inputs["query"][row], key, value))


def test_attention_with_the_append_equals_append_then_attention():
    fused, apart = make(), make()
    new_key, new_value = apart.pop("new_key"), apart.pop("new_value")
    append_kv(apart["key_cache"], apart["value_cache"], new_key, new_value, apart["cache_seqlens"])
    assert torch.equal(decode_attention(**fused), decode_attention(**apart))
    assert torch.equal(fused["key_cache"], apart["key_cache"])
    assert torch.equal(fused["value_cache"], apart["value_cache"])


def test_append_writes_the_new_tokens_and_nothing_else():
    inputs = make()
    before = inputs["key_cache"].clone()
    slots, num_new = torch.tensor([1, 3, 0]), torch.tensor([2, 0, 1])
    append_kv(
        inputs["key_cache"],
        inputs["value_cache"],
        inputs["new_key"],
        inputs["new_value"],
        inputs["cache_seqlens"],
        num_new=num_new,
        slots=slots,
    )
    before[1, 0:2] = inputs["new_key"][0]
    before[0, 14] = inputs["new_key"][2, 0]
    assert torch.equal(inputs["key_cache"], before)


def test_padding_gives_zero_and_unwritten_cache_is_never_seen():
    inputs = make()
    inputs["key_cache"][1, 5:], inputs["value_cache"][1, 5:] = float("nan"), float("nan")
    clean = make()
    num_new = torch.tensor([2, 1, 0])
    output = decode_attention(**inputs, num_new=num_new)
    assert torch.equal(output, decode_attention(**clean, num_new=num_new))
    assert not output[1, 1].any()
    assert not output[2].any()


def test_a_row_does_not_depend_on_its_neighbours():
    inputs = make()
    whole = decode_attention(**{name: tensor.clone() for name, tensor in inputs.items()})
    alone = {name: tensor[1:2] for name, tensor in inputs.items() if "cache" not in name or name == "cache_seqlens"}
    caches = {name: inputs[name] for name in ("key_cache", "value_cache")}
    torch.testing.assert_close(decode_attention(**alone, **caches, slots=torch.tensor([1])), whole[1:2])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda x: x["query"].float()),
        ("query", lambda x: x["query"][:, :, :3]),
        ("query", lambda x: x["query"][..., :4]),
        ("key_cache", lambda x: x["key_cache"][0]),
        ("value_cache", lambda x: x["value_cache"][:, :-1]),
        ("value_cache", lambda x: x["value_cache"].transpose(2, 3)),
        ("new_key", lambda x: x["new_key"][..., :1, :]),
        ("cache_seqlens", lambda x: x["cache_seqlens"].float()),
        ("cache_seqlens", lambda x: x["cache_seqlens"] + 1),
        ("num_new", lambda _: torch.tensor([0, 1, 3])),
        ("slots", lambda _: torch.tensor([0, 1, 5])),
        ("slots", lambda _: torch.tensor([0, 1])),
    ],
)
def test_a_bad_argument_is_named(name, change):
    inputs = make()
    inputs[name] = change(inputs)
    with pytest.raises(ValueError, match=name):
        decode_attention(**inputs)


def test_a_backend_that_cannot_run_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='cuda'"):
        decode_attention(**make(), backend="cuda")
    with pytest.raises(RuntimeError, match="backend='triton'"):
        decode_attention(**make(), backend="triton")
