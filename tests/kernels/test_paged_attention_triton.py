"""Triton's decode attention reads and appends through block tables."""

from __future__ import annotations

import pytest
import torch
from paged_rows import assert_equal_layouts, scatter


@pytest.mark.parametrize(
    ("lengths", "num_tokens", "num_new"),
    [([0, 17, 31, 40], 1, None), ([5, 33], 3, [3, 0]), ([0, 30], 20, None), ([16, 47], 40, [40, 1])],
)
def test_triton_reads_and_appends_through_the_table(device, lengths, num_tokens, num_new):
    whole, paged, table, lengths, new = scatter(torch.Generator().manual_seed(1), lengths, num_tokens, 16)
    num_new = None if num_new is None else torch.tensor(num_new, device=device)
    whole, paged = ([tensor.to(device) for tensor in pair] for pair in (whole, paged))
    new = {name: tensor.to(device) for name, tensor in new.items()}
    assert_equal_layouts("triton", whole, paged, table.to(device), lengths.to(device), new, num_new)
