"""Decode attention by its definition and natively, held to PyTorch's own attention, and its refusals."""

from __future__ import annotations

import pytest
import torch
from native_library import needs_library
from relay_kernels.decode_attention import append_kv, decode_attention
from relay_kernels.decode_attention.reference import append_kv_reference
from torch._subclasses.fake_tensor import FakeTensorMode


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_library)])
def backend(request):
    return request.param


def make(rows=3, tokens=2, heads=4, kv_heads=2, size=8, slots=5, capacity=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "query": draw(rows, tokens, heads, size),
        "key_cache": draw(slots, capacity, kv_heads, size),
        "value_cache": draw(slots, capacity, kv_heads, size),
        "cache_seqlens": torch.tensor([0, capacity // 3, capacity - tokens][:rows], dtype=torch.int32),
        "new_key": draw(rows, tokens, kv_heads, size),
        "new_value": draw(rows, tokens, kv_heads, size),
    }


def assert_same(actual, expected, backend):
    """Bit by bit where the sums are ours; a library may sum up otherwise for other strides or beside other values."""
    exactly = {"rtol": 0, "atol": 0} if backend == "native" else {}
    torch.testing.assert_close(actual, expected, **exactly)


def attend_row(query, key, value):
    """PyTorch's attention of the last T of L positions: [T, H, D] over [L, K, D]."""
    tokens, length = query.shape[0], key.shape[0]
    mask = torch.ones(tokens, length, dtype=torch.bool).tril(length - tokens)
    heads_first = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    output = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask, enable_gqa=True)
    return output[0].transpose(0, 1)


def attend_rows(inputs, slots, dtype):
    """PyTorch's attention row by row at `dtype`, caches as they were before the call."""
    inputs = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    outputs = []
    for row, slot in enumerate(slots.tolist()):
        length = int(inputs["cache_seqlens"][row])
        key = torch.cat([inputs["key_cache"][slot, :length], inputs["new_key"][row]])
        value = torch.cat([inputs["value_cache"][slot, :length], inputs["new_value"][row]])
        outputs.append(attend_row(inputs["query"][row], key, value))
    return torch.stack(outputs)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        {"size": 8},
        {"size": 32, "capacity": 61},
        {"size": 37, "heads": 3, "kv_heads": 1, "capacity": 33},
        {"size": 80, "heads": 7, "kv_heads": 7, "tokens": 1},
        {"size": 128, "heads": 10, "kv_heads": 2, "tokens": 5, "capacity": 130},
        {"size": 64, "heads": 2, "kv_heads": 1, "tokens": 40, "capacity": 200},
        {"size": 1, "heads": 1, "kv_heads": 1, "tokens": 1, "slots": 3, "capacity": 2},
    ],
    ids=str,
)
def test_each_row_attends_to_its_own_slot_up_to_its_own_length(backend, dtype, shape, assert_as_exact_as):
    inputs, slots = make(dtype=dtype, **shape), torch.tensor([2, 0, 1])
    truth, plain = attend_rows(inputs, slots, torch.float64), attend_rows(inputs, slots, dtype)
    assert_as_exact_as(decode_attention(**inputs, block_table=slots[:, None], backend=backend), plain, truth)


def test_the_definition_equals_pytorch_in_double_precision():
    inputs, slots = make(dtype=torch.float64), torch.tensor([4, 0, 2])
    expected = attend_rows(inputs, slots, torch.float64)
    torch.testing.assert_close(decode_attention(**inputs, block_table=slots[:, None]), expected)


@pytest.mark.parametrize("layout", ["token-major", "head-major", "sliced"])
def test_any_strides_will_do_if_the_last_is_one(backend, layout):
    inputs, strided = make(size=16), make(size=16)
    for name in ("query", "key_cache", "value_cache", "new_key", "new_value"):
        if layout == "head-major":
            strided[name] = strided[name].transpose(1, 2).contiguous().transpose(1, 2)
        elif layout == "sliced":
            strided[name] = torch.cat([strided[name], torch.full_like(strided[name], torch.nan)], -1)[..., :16]
    strided["cache_seqlens"] = strided["cache_seqlens"].long().repeat_interleave(2)[::2]
    expected = decode_attention(**inputs, backend=backend)
    assert_same(decode_attention(**strided, backend=backend), expected, backend)
    assert torch.equal(strided["key_cache"], inputs["key_cache"])


def test_scores_of_any_size_give_the_weights_of_pytorch(backend):
    inputs, slots = make(size=32, capacity=50), torch.tensor([4, 0, 2])
    inputs["query"] *= 100.0
    inputs["key_cache"][0, 3] = -torch.inf
    inputs["query"] = inputs["query"].abs()
    expected = attend_rows(inputs, slots, torch.float64).float()
    torch.testing.assert_close(
        decode_attention(**inputs, block_table=slots[:, None], backend=backend), expected, rtol=1e-3, atol=1e-4
    )


def test_what_is_not_a_number_in_sight_shows(backend):
    inputs = make(size=32)
    inputs["key_cache"][1, 2, 0, 5] = torch.nan
    output = decode_attention(**inputs, backend=backend)
    assert output[1, :, :2].isnan().all()
    assert not output[1, :, 2:].isnan().any()
    assert not output[[0, 2]].isnan().any()


def test_attention_with_the_append_equals_append_then_attention(backend):
    fused, apart = make(), make()
    new_key, new_value = apart.pop("new_key"), apart.pop("new_value")
    append_kv(apart["key_cache"], apart["value_cache"], new_key, new_value, apart["cache_seqlens"], backend=backend)
    assert_same(decode_attention(**fused, backend=backend), decode_attention(**apart, backend=backend), backend)
    assert torch.equal(fused["key_cache"], apart["key_cache"])
    assert torch.equal(fused["value_cache"], apart["value_cache"])


def test_a_row_without_new_tokens_may_be_longer_than_the_view_of_the_cache(backend):
    inputs, num_new = make(size=32), torch.tensor([2, 0, 1])
    inputs["cache_seqlens"][1] = 1000
    key_cache = inputs["key_cache"].clone()
    output = decode_attention(**inputs, num_new=num_new, backend=backend)
    assert not output[1].any()
    assert output[[0, 2], :1].any()
    assert torch.equal(inputs["key_cache"][1], key_cache[1])


@pytest.mark.parametrize("length", [1000, 2**31 - 1, 2**40, 2**61, 2**62, 2**63 - 1])
@pytest.mark.parametrize("idle", [0, 1])
def test_the_length_of_an_idle_row_is_not_looked_at(backend, idle, length):
    """It once sized the scratch memory of all rows: an overflow of the product wrote beyond it."""
    inputs, num_new = make(rows=2, tokens=1, size=32, slots=2, capacity=1024), torch.ones(2, dtype=torch.int64)
    inputs["cache_seqlens"] = torch.tensor([1000, 1000])
    num_new[idle] = 0
    expected = decode_attention(**{name: tensor.clone() for name, tensor in inputs.items()}, num_new=num_new)
    inputs["cache_seqlens"][idle] = length
    before = inputs["key_cache"][idle].clone()
    assert torch.allclose(decode_attention(**inputs, num_new=num_new, backend=backend), expected, atol=1e-5)
    assert torch.equal(inputs["key_cache"][idle], before)
    new = inputs.pop("new_key"), inputs.pop("new_value")
    append_kv(
        inputs["key_cache"], inputs["value_cache"], *new, inputs["cache_seqlens"], num_new=num_new, backend=backend
    )
    assert torch.equal(inputs["key_cache"][idle], before)


def test_new_tokens_may_lie_in_the_cache_already(backend):
    inputs = make(rows=1, tokens=1, slots=1)
    inputs["cache_seqlens"][:] = 3
    inputs["new_key"], before = inputs["key_cache"][:, 3:4], inputs["key_cache"].clone()
    decode_attention(**inputs, backend=backend)
    assert torch.equal(inputs["key_cache"], before)


def test_heads_of_no_size_give_nothing(backend):
    assert decode_attention(**make(size=0), backend=backend).shape == (3, 2, 4, 0)


def test_append_writes_the_new_tokens_and_nothing_else(backend):
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
        block_table=slots[:, None],
        backend=backend,
    )
    before[1, 0:2] = inputs["new_key"][0]
    before[0, 14] = inputs["new_key"][2, 0]
    assert torch.equal(inputs["key_cache"], before)


def test_padding_gives_zero_and_unwritten_cache_is_never_seen(backend):
    inputs = make()
    inputs["key_cache"][1, 5:], inputs["value_cache"][1, 5:] = float("nan"), float("nan")
    clean = make()
    num_new = torch.tensor([2, 1, 0])
    output = decode_attention(**inputs, num_new=num_new, backend=backend)
    assert_same(output, decode_attention(**clean, num_new=num_new, backend=backend), backend)
    assert not output[1, 1].any()
    assert not output[2].any()


def test_a_row_does_not_depend_on_its_neighbours(backend):
    inputs = make()
    whole = decode_attention(**{name: tensor.clone() for name, tensor in inputs.items()}, backend=backend)
    alone = {name: tensor[1:2] for name, tensor in inputs.items() if "cache" not in name or name == "cache_seqlens"}
    caches = {name: inputs[name] for name in ("key_cache", "value_cache")}
    row = decode_attention(**alone, **caches, block_table=torch.tensor([[1]]), backend=backend)
    torch.testing.assert_close(row, whole[1:2])


@needs_library
def test_a_result_has_the_same_bits_on_any_number_of_threads():
    # Enough work for several threads; rows of different length.
    generator = torch.Generator().manual_seed(0)
    query, new = torch.randn(64, 1, 4, 32, generator=generator), torch.randn(64, 1, 2, 32, generator=generator)
    caches = [torch.randn(64, 200, 2, 32, generator=generator) for _ in range(2)]
    lengths = torch.randint(0, 199, (64,), generator=generator)
    outputs = []
    before = torch.get_num_threads()
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        outputs.append(decode_attention(query, *caches, lengths, new_key=new, new_value=new, backend="native"))
    torch.set_num_threads(before)
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_is_computed_when_there_are_no_rows_or_no_tokens(backend, rows):
    inputs = make()
    for name in ("query", "new_key", "new_value"):
        inputs[name] = inputs[name][:rows, : 0 if rows else 2]
    inputs["cache_seqlens"] = inputs["cache_seqlens"][:rows]
    before = inputs["key_cache"].clone()
    assert decode_attention(**inputs, backend=backend).numel() == 0
    assert torch.equal(inputs["key_cache"], before)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("query", lambda x: x["query"].bfloat16()),
        ("query", lambda x: x["query"][:, :, :3]),
        ("query", lambda x: x["query"][..., :4]),
        ("query", lambda x: x["query"][0]),
        ("query", lambda x: x["query"].transpose(1, 3)),
        ("key_cache", lambda x: x["key_cache"][0]),
        ("key_cache", lambda x: x["key_cache"][0, 0, 0, 0]),
        ("value_cache", lambda x: x["value_cache"][:, :-1]),
        ("value_cache", lambda x: x["value_cache"].bfloat16()),
        ("value_cache", lambda x: x["value_cache"].transpose(2, 3)),
        ("new_key", lambda x: x["new_key"][..., :1, :]),
        ("new_key", lambda x: x["new_key"][:, :1]),
        ("new_key", lambda _: None),
        ("cache_seqlens", lambda x: x["cache_seqlens"].float()),
        ("cache_seqlens", lambda x: x["cache_seqlens"] + 1),
        ("cache_seqlens", lambda x: x["cache_seqlens"] - 1),
        ("cache_seqlens", lambda x: x["cache_seqlens"][:2]),
        ("num_new", lambda _: torch.tensor([0, 1, 3])),
        ("num_new", lambda _: torch.tensor([0, -1, 0])),
        ("block_table", lambda _: torch.tensor([[0], [1], [5]])),
        ("block_table", lambda _: torch.tensor([[-1], [1], [2]])),
        ("block_table", lambda _: torch.tensor([[0], [1]])),
        ("block_table", lambda _: torch.tensor([[0], [0], [1]])),
        ("block_table", lambda _: torch.tensor([[4], [1], [4]], dtype=torch.int32)),
        ("block_table", lambda _: torch.tensor([[0], [1], [2**62]])),
        ("block_table", lambda _: torch.tensor([[0], [1], [-(2**63)]])),
        ("block_table", lambda _: torch.tensor([[2]]).expand(3, 1)),
        ("block_table", lambda _: torch.tensor([0, 1, 2])),
        ("block_table", lambda _: torch.zeros(3, 0, dtype=torch.int64)),
        ("block_table", lambda _: torch.zeros(3, 1)),
        ("cache_seqlens", lambda _: torch.tensor([2**62, 1, 1])),
        ("cache_seqlens", lambda _: torch.tensor([2**63 - 1, 1, 1])),
        ("cache_seqlens", lambda _: torch.tensor([2**31 - 1, 1, 1], dtype=torch.int32)),
        ("cache_seqlens", lambda _: torch.tensor([-(2**63), 1, 1])),
        ("num_new", lambda _: torch.tensor([2**62, 1, 1])),
        ("num_new", lambda _: torch.tensor([-(2**63), 1, 1])),
        ("key_cache", lambda x: x["key_cache"][:1].expand(5, -1, -1, -1)),
        ("value_cache", lambda x: x["value_cache"][:, :1].expand(-1, 16, -1, -1)),
        ("scale", lambda _: float("nan")),
        ("scale", lambda _: float("inf")),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_written(backend, name, change):
    inputs = make()
    inputs[name] = change(inputs)
    before = inputs["key_cache"].clone()
    with pytest.raises(ValueError, match=name):
        decode_attention(**inputs, backend=backend)
    assert torch.equal(inputs["key_cache"], before)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("key_cache", lambda x: x["key_cache"][0]),
        ("value_cache", lambda x: x["value_cache"].bfloat16()),
        ("value_cache", lambda x: x["value_cache"][..., :4]),
        ("value_cache", lambda x: x["value_cache"].transpose(2, 3).contiguous().transpose(2, 3)),
        ("new_value", lambda x: x["new_value"].bfloat16()),
        ("new_value", lambda x: x["new_value"][:, :1]),
        ("new_key", lambda x: x["new_key"].transpose(2, 3).contiguous().transpose(2, 3)),
        ("cache_seqlens", lambda x: x["cache_seqlens"].float()),
        ("cache_seqlens", lambda x: x["cache_seqlens"] + 1),
        ("num_new", lambda _: torch.tensor([0, 1, 3])),
        ("block_table", lambda _: torch.tensor([[0], [1], [5]])),
        ("block_table", lambda _: torch.tensor([[3], [1], [3]])),
        ("cache_seqlens", lambda _: torch.tensor([2**63 - 1, 1, 1])),
        ("key_cache", lambda x: x["key_cache"][:1].expand(5, -1, -1, -1)),
    ],
)
def test_a_bad_argument_of_the_append_is_named_and_nothing_is_written(backend, name, change):
    inputs = make()
    del inputs["query"]
    inputs[name] = change(inputs)
    before = inputs["key_cache"].clone()
    with pytest.raises(ValueError, match=f"^{name} "):
        append_kv(**inputs, backend=backend)
    assert torch.equal(inputs["key_cache"], before)


def test_more_rows_than_blocks_are_refused_without_a_block_table(backend):
    inputs = make(slots=2)
    with pytest.raises(ValueError, match="query has 3 rows, key_cache 2 blocks"):
        decode_attention(**inputs, backend=backend)


def test_a_backend_that_cannot_run_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="backend='cuda'"):
        decode_attention(**make(), backend="cuda")
    with pytest.raises(RuntimeError, match="backend='triton'"):
        decode_attention(**make(), backend="triton")


@needs_library
def test_a_dtype_that_the_library_lacks_runs_by_definition_unless_native_is_asked_for():
    inputs = make(dtype=torch.float64)
    decode_attention(**inputs)
    with pytest.raises(RuntimeError, match=r"backend='native' of decode_attention cannot run: .*float64"):
        decode_attention(**inputs, backend="native")


def test_append_by_definition_waits_for_no_value_and_drops_what_is_beyond_the_capacity():
    """Picking out the new tokens would ask the device how many they are, which fake tensors cannot say."""
    inputs = make(tokens=6, capacity=4)
    names = ("key_cache", "value_cache", "new_key", "new_value")
    lengths, num_new = torch.tensor([0, 3, 2]), torch.tensor([6, 2, 1])
    table = torch.tensor([[1], [3], [0]])
    before = inputs["key_cache"].clone()
    append_kv_reference(*(inputs[name] for name in names), lengths, num_new, table)
    before[1] = inputs["new_key"][0, :4]
    before[3, 3] = inputs["new_key"][1, 0]
    before[0, 2] = inputs["new_key"][2, 0]
    assert torch.equal(inputs["key_cache"], before)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (*(inputs[name] for name in names), lengths, num_new, table)]
        append_kv_reference(*fakes)
