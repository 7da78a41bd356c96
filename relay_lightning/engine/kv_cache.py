"""Keys and values of many sequences in blocks, and what attention over them needs.

Shapes: N blocks of P tokens, R rows, M blocks of a row at most, B rows of a pass, T new tokens, H query heads, K
key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from relay_lightning.engine.block_manager import BlockManager, Prefix

__all__ = ["BlockManager", "PagedKVCache", "Prefix"]

FEWEST_CUDA_TOKENS = 512
"""On a GPU the tokens in view double from here: each number has its graphs, and those beyond a row cost little."""


class PagedKVCache:
    """Per-layer keys and values [N, P, K, D], which each layer's attention appends to and reads in place.

    A forward pass is announced with `begin`, under the autocast it runs in; each layer then attends with its
    `attention_inputs`. Storage is made by the first call of a layer, with the dtype and head shape that the model has.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_rows: int,
        max_length: int,
        device: torch.device,
        backend: str = "auto",
    ) -> None:
        """max_length: of a row, in tokens. backend: of `decode_attention`."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_length = max_length
        num_columns = max(1, -(-max_length // block_size))
        self.block_table = torch.zeros(num_rows, num_columns, dtype=torch.int64, device=device)
        """[R, M] int64: token t of row r lies in block block_table[r, t // P]."""
        self.lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
        """[R] int64: tokens of each row; written in place."""
        self._backend = backend
        self._storages: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer."""
        self._offsets = torch.arange(max_length, device=device)
        self.longest = 0
        """Tokens of the longest row after the announced pass."""
        self.pass_table = self.block_table
        """[B, m] int64: block table of the announced pass."""
        self.num_cached = self.lengths
        """[B] int64: tokens before the announced pass."""
        self.num_new = self.lengths
        """[B] int64: tokens of the announced pass."""
        self._autocast_dtype: torch.dtype | None = None
        self.num_attended = 0
        """Layers of the announced pass that have attended."""

    @classmethod
    def with_own_blocks(
        cls, num_rows: int, max_length: int, device: torch.device, backend: str = "auto", block_size: int = 256
    ) -> PagedKVCache:
        """Returns a cache whose rows each have the blocks of `max_length` tokens, for passes without a scheduler."""
        num_columns = max(1, -(-max_length // block_size))
        cache = cls(num_rows * num_columns, block_size, num_rows, max_length, device, backend)
        cache.block_table.copy_(torch.arange(num_rows * num_columns, device=device).view(num_rows, num_columns))
        return cache

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values of all layers seen so far."""
        return sum(storage.numel() * storage.itemsize for storage in self._all_storages())

    def begin(self, rows: Tensor | None, num_new: Tensor, num_tokens: int, longest: int) -> Tensor:
        """Plans a pass of T = num_tokens tokens a row, of which num_new[i] (0 to T) are real, and advances the lengths.

        rows: [B] or None for all. longest: an upper bound of the tokens of a row after the pass. Returns positions
        [B, T] int64.
        """
        columns = self.columns_of(longest)
        if rows is None:
            lengths, self.pass_table = self.lengths.clone(), self.block_table[:, :columns]
        else:
            lengths = self.lengths.index_select(0, rows)
            self.pass_table = self.block_table[:, :columns].index_select(0, rows)
        self.longest, self.num_cached, self.num_new, self.num_attended = longest, lengths, num_new, 0
        self._autocast_dtype = autocast_dtype(lengths.device.type)
        if rows is None:
            self.lengths += num_new
        else:
            self.lengths.index_copy_(0, rows, lengths + num_new)
        positions = lengths[:, None] if num_tokens == 1 else lengths[:, None] + self._offsets[:num_tokens]
        return positions.clamp(max=self.max_length - 1)

    def columns_of(self, longest: int) -> int:
        """Columns of the block table in view when no row has more than `longest` tokens."""
        if self.lengths.is_cuda:
            longest = max(FEWEST_CUDA_TOKENS, 1 << (longest - 1).bit_length())
        return min(-(-longest // self.block_size), self.block_table.shape[1])

    def attention_inputs(self, query: Tensor, keys: Tensor, values: Tensor, layer_index: int) -> dict[str, Any]:
        """Returns the arguments of `decode_attention` for a layer of the announced pass.

        query: [B, T, H, D]; keys, values: [B, T, K, D], which are appended.
        """
        # Under autocast, attention computes with its dtype: it would narrow wider states at every step anew.
        dtype = self._autocast_dtype or values.dtype
        self.num_attended += 1
        if layer_index == len(self._storages):
            shape = (self.num_blocks, self.block_size, *values.shape[2:])
            self._storages.append((values.new_empty(shape, dtype=dtype), values.new_empty(shape, dtype=dtype)))
        stored_keys, stored_values = self._storages[layer_index]
        return {
            "query": _as(query, dtype),
            "key_cache": stored_keys,
            "value_cache": stored_values,
            "cache_seqlens": self.num_cached,
            "new_key": _as(keys, dtype),
            "new_value": _as(values, dtype),
            "num_new": self.num_new,
            "block_table": self.pass_table,
            "backend": self._backend,
        }

    def clear(self) -> None:
        """Drops all keys and values; the next pass may have others of another dtype."""
        self._storages = []

    def keys_of(self, layer_index: int) -> Tensor:
        """Returns the keys of a layer, [N, P, K, D]."""
        return self._storages[layer_index][0]

    def set_blocks(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Writes (row, column, block) entries of the block table."""
        if entries:
            rows, columns, blocks = torch.tensor(entries, device=self.lengths.device).unbind(1)
            self.block_table[rows, columns] = blocks

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, as (source, target), in every layer."""
        if pairs:
            sources, targets = torch.tensor(pairs, device=self.lengths.device).unbind(1)
            for storage in self._all_storages():
                storage[targets] = storage[sources]

    def _all_storages(self) -> Iterator[Tensor]:
        return chain.from_iterable(self._storages)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast computes with, or None where it is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def _as(states: Tensor, dtype: torch.dtype) -> Tensor:
    """`states.to(dtype)`, without what that call costs where there is nothing to do."""
    return states if states.dtype is dtype else states.to(dtype)
