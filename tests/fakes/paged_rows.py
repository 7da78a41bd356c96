"""Random rows of a paged key/value cache, and the same rows in one block each."""

from __future__ import annotations

import torch
from relay_kernels import decode_attention

SIZE, HEADS, KV_HEADS = 32, 4, 2
TOLERANCE = {"atol": 2e-6, "rtol": 1e-5}


def scatter(generator, lengths, num_tokens, block_size):
    """Random rows twice: in one block each, and in blocks scattered over a cache that holds NaN everywhere else.

    Entries of the table behind a row's tokens name no block.
    """
    num_blocks = [-(-(length + num_tokens) // block_size) for length in lengths]
    width, capacity = max(num_blocks), max(num_blocks) * block_size
    order = torch.randperm(sum(num_blocks) + 3, generator=generator).tolist()
    table = torch.full((len(lengths), width + 1), -7)
    whole = [torch.full((len(lengths), capacity, KV_HEADS, SIZE), torch.nan) for _ in range(2)]
    paged = [torch.full((len(order), block_size, KV_HEADS, SIZE), torch.nan) for _ in range(2)]
    for row, length in enumerate(lengths):
        blocks = [order.pop() for _ in range(num_blocks[row])]
        table[row, : len(blocks)] = torch.tensor(blocks)
        for one, several in zip(whole, paged, strict=True):
            one[row, :length] = torch.randn(length, KV_HEADS, SIZE, generator=generator)
            for column, block in enumerate(blocks):
                several[block] = one[row, column * block_size : (column + 1) * block_size]
    new = {
        name: torch.randn(len(lengths), num_tokens, heads, SIZE, generator=generator)
        for name, heads in (("query", HEADS), ("new_key", KV_HEADS), ("new_value", KV_HEADS))
    }
    return whole, paged, table, torch.tensor(lengths), new


def assert_equal_layouts(backend, whole, paged, table, lengths, new, num_new=None):
    assert torch.equal(torch.isnan(paged[0]), torch.isnan(paged[1]))
    untouched = torch.isnan(paged[0][..., 0, 0])
    query, rest = new["query"], {name: new[name] for name in ("new_key", "new_value")}
    expected = decode_attention(query, *whole, lengths, num_new=num_new, **rest, backend="reference")
    output = decode_attention(query, *paged, lengths, num_new=num_new, **rest, block_table=table, backend=backend)
    torch.testing.assert_close(output, expected, **TOLERANCE)
    for row, length in enumerate(lengths.tolist()):
        stop = length + (query.shape[1] if num_new is None else int(num_new[row]))
        blocks = table[row, : -(-stop // paged[0].shape[1])]
        for one, several in zip(whole, paged, strict=True):
            assert torch.equal(several[blocks].flatten(0, 1)[:stop], one[row, :stop])
    num_written = sum(
        query.shape[1] if num_new is None else int(count) for count in (lengths if num_new is None else num_new)
    )
    assert int((untouched & ~torch.isnan(paged[0][..., 0, 0])).sum()) == num_written
