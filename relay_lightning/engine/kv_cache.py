"""Keys and values of S slots of different length, and the attention over them.

Shapes: S slots, N rows of a pass, T new tokens, H query heads, K key/value heads, C capacity, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from relay_kernels import decode_attention
from torch import Tensor

VIEW_BUCKET = 32
"""On a CPU the columns in view are rounded up to a multiple of this."""
FEWEST_CUDA_COLUMNS = 512
"""On a GPU they double from here: each number has its graphs, and columns beyond a row's length cost little."""


class SlotKVCache:
    """Per-layer keys and values [S, C, K, D], which each layer's attention appends to and reads in place.

    A forward pass is announced with `begin`, under the autocast it runs in; the model then calls `attend` once per
    layer. Storage is made by the first call of a layer, with the dtype and head shape that the model has. A pass that a
    CUDA graph repeats is told of with `grow` alone.
    """

    def __init__(self, num_slots: int, max_length: int, device: torch.device, backend: str = "auto") -> None:
        """backend: of `decode_attention`."""
        self.num_slots = num_slots
        self.max_length = max_length
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """[S] int64: tokens in each slot; written in place."""
        self.longest = 0
        """An upper bound of `lengths` that is known without asking the device."""
        self._backend = backend
        self._storages: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer."""
        self._views: list[tuple[Tensor, Tensor]] = []
        """Their columns in view."""
        self._columns = torch.arange(max_length, device=device)
        self._slots: Tensor | None = None
        self._num_cached = self.lengths
        """[N] int64: tokens before the announced pass."""
        self._num_new = self.lengths
        self._num_columns = 0
        self._autocast_dtype: torch.dtype | None = None
        self.num_attended = 0
        """Layers of the announced pass that have attended."""

    @property
    def num_bytes(self) -> int:
        """Of the keys and values of all layers seen so far."""
        return sum(storage.numel() * storage.itemsize for storage in self._all_storages())

    def begin(self, slots: Tensor | None, num_new: Tensor, num_tokens: int) -> Tensor:
        """Plans a pass of T = num_tokens tokens a row, of which num_new[i] (0 to T) are real, and advances the lengths.

        slots: [N] or None for all. Returns positions [N, T] int64.
        """
        self.grow(num_tokens)
        lengths = self.lengths.clone() if slots is None else self.lengths.index_select(0, slots)
        self._slots, self._num_cached, self._num_new, self.num_attended = slots, lengths, num_new, 0
        self._autocast_dtype = _autocast_dtype(lengths.device.type)
        if slots is None:
            self.lengths += num_new
        else:
            self.lengths.index_copy_(0, slots, lengths + num_new)
        positions = lengths[:, None] if num_tokens == 1 else lengths[:, None] + self._columns[:num_tokens]
        return positions.clamp(max=self.max_length - 1)

    def grow(self, num_tokens: int) -> None:
        """The host's part of a pass: makes room in view for that many more tokens in each slot."""
        num_columns = self.columns_after(num_tokens)
        self.longest = min(self.longest + num_tokens, self.max_length)
        if num_columns != self._num_columns:
            self._num_columns = num_columns
            self._views = [(keys[:, :num_columns], values[:, :num_columns]) for keys, values in self._storages]

    def columns_after(self, num_tokens: int) -> int:
        """Columns in view in the next pass, if it has so many tokens a row."""
        longest = self.longest + num_tokens
        if self.lengths.is_cuda:
            num_columns = max(FEWEST_CUDA_COLUMNS, 1 << (longest - 1).bit_length())
        else:
            num_columns = -(-longest // VIEW_BUCKET) * VIEW_BUCKET
        return min(num_columns, self.max_length)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, layer_index: int, scale: float | None) -> Tensor:
        """Appends the new keys and values, each [N, T, K, D], and returns the attention of `query`, [N, T, H, D]."""
        # Under autocast, attention computes with its dtype: it would narrow wider states at every step anew.
        dtype = self._autocast_dtype or values.dtype
        self.num_attended += 1
        if layer_index == len(self._storages):
            self._add_layer(values, dtype)
        key_view, value_view = self._views[layer_index]
        return decode_attention(
            _as(query, dtype),
            key_view,
            value_view,
            self._num_cached,
            new_key=_as(keys, dtype),
            new_value=_as(values, dtype),
            num_new=self._num_new,
            block_table=None if self._slots is None else self._slots[:, None],
            scale=scale,
            backend=self._backend,
        )

    def truncate(self, slots: Tensor, lengths: Tensor) -> None:
        """Forgets all but the first lengths[i] tokens of slots[i]."""
        self.lengths.index_copy_(0, slots, lengths)

    def copy_prefix(self, source: int, targets: Tensor, length: int) -> None:
        """Makes the first `length` tokens of slot `source` the whole contents of each target slot."""
        for storage in self._all_storages():
            storage[targets, :length] = storage[source, :length]
        self.lengths.index_fill_(0, targets, length)
        self.longest = max(self.longest, length)

    def tighten(self, longest: int) -> None:
        """Lowers the bound `longest` to what the caller has read back from the device."""
        self.longest = longest

    def _add_layer(self, like: Tensor, dtype: torch.dtype) -> None:
        shape = (self.num_slots, self.max_length, *like.shape[2:])
        keys, values = like.new_empty(shape, dtype=dtype), like.new_empty(shape, dtype=dtype)
        self._storages.append((keys, values))
        self._views.append((keys[:, : self._num_columns], values[:, : self._num_columns]))

    def _all_storages(self) -> Iterator[Tensor]:
        return chain.from_iterable(self._storages)


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast computes with, where it is on."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def _as(states: Tensor, dtype: torch.dtype) -> Tensor:
    """`states.to(dtype)`, without what that call costs where there is nothing to do."""
    return states if states.dtype is dtype else states.to(dtype)
