"""Rows of several KV blocks are attended to as rows of one, wherever their blocks lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_library import needs_library
from paged_rows import HEADS, KV_HEADS, SIZE, TOLERANCE, assert_equal_layouts, scatter
from relay_kernels import append_kv, decode_attention

BACKENDS = ["reference", pytest.param("native", marks=needs_library)]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=5),
    num_tokens=st.integers(1, 20),
    block_size=st.sampled_from([16, 32, 48]),
    is_padded=st.booleans(),
    seed=st.integers(0, 999),
)
def test_rows_of_several_blocks_equal_rows_of_one(backend, lengths, num_tokens, block_size, is_padded, seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = scatter(generator, lengths, num_tokens, block_size)
    num_new = torch.randint(0, num_tokens + 1, (len(lengths),), generator=generator) if is_padded else None
    assert_equal_layouts(backend, *inputs, num_new)


@needs_library
def test_a_row_has_the_same_bits_with_any_block_size():
    outputs = []
    for block_size in (16, 32, 64):
        _, paged, table, lengths, new = scatter(torch.Generator().manual_seed(3), [70, 3, 64], 2, 64)
        blocks = [cache.unflatten(1, (-1, block_size)).flatten(0, 1) for cache in paged]
        per_block = 64 // block_size
        table = (table[:, :, None] * per_block + torch.arange(per_block)).flatten(1)
        outputs.append(
            decode_attention(
                new["query"], *blocks, lengths, new_key=new["new_key"], new_value=new["new_value"], block_table=table,
                backend="native",
            )
        )  # fmt: skip
    assert all(torch.equal(outputs[0], output) for output in outputs[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_share_the_blocks_of_a_common_prefix(backend):
    generator = torch.Generator().manual_seed(0)
    cache = [torch.randn(5, 16, KV_HEADS, SIZE, generator=generator) for _ in range(2)]
    table, lengths = torch.tensor([[4, 0], [4, 2]]), torch.tensor([16, 20])
    query = torch.randn(2, 1, HEADS, SIZE, generator=generator)
    new = {name: torch.randn(2, 1, KV_HEADS, SIZE, generator=generator) for name in ("new_key", "new_value")}
    output = decode_attention(query, *cache, lengths, **new, block_table=table, backend=backend)
    own = [part[table].flatten(1, 2) for part in cache]
    expected = decode_attention(query, *own, lengths, **new, backend="reference")
    torch.testing.assert_close(output, expected, **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_never_lands_in_the_block_of_another_row(backend):
    """A table may name another row's block behind a row's own tokens, as after blocks were freed and given away."""
    cache = [torch.zeros(2, 16, KV_HEADS, SIZE) for _ in range(2)]
    new = torch.ones(2, 4, KV_HEADS, SIZE)
    table, lengths, num_new = torch.tensor([[1], [1]]), torch.tensor([3, 3]), torch.tensor([0, 2])
    append_kv(*cache, new, 2 * new, lengths, num_new=num_new, block_table=table, backend=backend)
    assert cache[0][1, 3:5].eq(1).all()
    assert cache[1][1, 3:5].eq(2).all()
    assert int(cache[0].count_nonzero()) == 2 * KV_HEADS * SIZE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("table", "lengths", "words"),
    [
        ([[0, 3], [1, 2]], [16, 0], "block_table must name blocks 0..2 where a row has tokens, it holds 0..3"),
        ([[0, 1], [-1, 2]], [16, 0], "block_table must name blocks 0..2 where a row has tokens, it holds -1..1"),
        ([[0, 1], [1, 2]], [32, 0], "cache_seqlens plus the new tokens must lie in 0..32"),
    ],
)
def test_a_table_that_leaves_the_cache_is_refused_before_anything_is_written(backend, table, lengths, words):
    cache = [torch.zeros(3, 16, KV_HEADS, SIZE) for _ in range(2)]
    new = torch.ones(2, 1, KV_HEADS, SIZE)
    with pytest.raises(ValueError, match=words):
        append_kv(*cache, new, new, torch.tensor(lengths), block_table=torch.tensor(table), backend=backend)
    assert not cache[0].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_several_blocks_of_an_odd_size_are_refused(backend):
    cache, new = torch.zeros(4, 10, KV_HEADS, SIZE), torch.ones(2, 1, KV_HEADS, SIZE)
    table = torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="key_cache has blocks of 10 tokens; rows of several blocks need a multiple"):
        append_kv(cache, cache.clone(), new, new, torch.tensor([0, 3]), block_table=table, backend=backend)
