"""Keys and values of S slots of different length.

Shapes: S slots, N rows of a call, T new tokens, H key/value heads, C capacity, K columns in view, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

VIEW_BUCKET = 32
"""The columns in view are rounded up to this, so that few distinct shapes occur."""


class SlotKVCache:
    """Per-layer keys and values [S, C + 1, H, D]; column C takes the writes of padding and of rows that are left alone.

    A forward pass is announced with `begin`; the model then calls `update` once per layer. Storage is made by the
    first update of a layer, with the dtype and head shape that the model has.
    """

    def __init__(self, num_slots: int, max_length: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.max_length = max_length
        self.lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """[S] int64: tokens in each slot."""
        self.longest = 0
        """An upper bound of `lengths` that is known without asking the device."""
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._all_slots = torch.arange(num_slots, device=device)
        self._columns = torch.arange(max_length + VIEW_BUCKET, device=device)
        self._slots: Tensor | None = None
        self._write_at = self.lengths
        """[N * T]: where the tokens of the announced pass go, as rows of [S * (C + 1), H * D]."""
        self._num_columns = 0

    @property
    def num_bytes(self) -> int:
        """Of the keys and values of all layers seen so far."""
        return sum(storage.numel() * storage.itemsize for storage in (*self._keys, *self._values))

    def begin(self, slots: Tensor | None, num_new: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Plans a pass of T = num_tokens tokens a row, of which num_new[i] (0 to T) are real, and advances the lengths.

        slots: [N] or None for all. Returns positions [N, T] int64 and the attention mask [N, 1, T, K] bool (True: may
        be seen).
        """
        lengths = self.lengths if slots is None else self.lengths.index_select(0, slots)
        if num_tokens == 1:
            positions = lengths[:, None]
            write_at = torch.where(num_new > 0, lengths, self.max_length)[:, None]
        else:
            offsets = self._columns[:num_tokens]
            positions = lengths[:, None] + offsets
            write_at = torch.where(offsets < num_new[:, None], positions, self.max_length)
        self._slots = slots
        rows = self._all_slots if slots is None else slots
        self._write_at = (rows[:, None] * (self.max_length + 1) + write_at).flatten()
        self.longest = min(self.longest + num_tokens, self.max_length)
        self._num_columns = min(-(-self.longest // VIEW_BUCKET) * VIEW_BUCKET, self.max_length + 1)
        mask = self._columns[: self._num_columns] <= positions[:, None, :, None]
        if slots is None:
            self.lengths = lengths + num_new
        else:
            self.lengths = self.lengths.index_copy(0, slots, lengths + num_new)
        return positions.clamp(max=self.max_length - 1), mask

    def update(self, keys: Tensor, values: Tensor, layer_index: int) -> tuple[Tensor, Tensor]:
        """Stores the new keys and values, each [N, H, T, D], and returns all in view, [N, H, K, D]."""
        if layer_index == len(self._keys):
            self._keys.append(self._storage(keys))
            self._values.append(self._storage(values))
        return self._store_and_view(self._keys[layer_index], keys), self._store_and_view(
            self._values[layer_index], values
        )

    def truncate(self, slots: Tensor, lengths: Tensor) -> None:
        """Forgets all but the first lengths[i] tokens of slots[i]."""
        self.lengths = self.lengths.index_copy(0, slots, lengths)

    def copy_prefix(self, source: int, targets: Tensor, length: int) -> None:
        """Makes the first `length` tokens of slot `source` the whole contents of each target slot."""
        for storage in (*self._keys, *self._values):
            storage[targets, :length] = storage[source, :length]
        self.lengths = self.lengths.index_fill(0, targets, length)
        self.longest = max(self.longest, length)

    def tighten(self, longest: int) -> None:
        """Lowers the bound `longest` to what the caller has read back from the device."""
        self.longest = longest

    def _storage(self, like: Tensor) -> Tensor:
        # Zeros: a masked column still takes part in the product with the values, and 0 * NaN is NaN.
        shape = (self.num_slots, self.max_length + 1, like.shape[1], like.shape[3])
        return like.new_zeros(shape, dtype=_attention_dtype(like))

    def _store_and_view(self, storage: Tensor, new: Tensor) -> Tensor:
        num_heads, head_size = new.shape[1], new.shape[3]
        rows = new.transpose(1, 2).reshape(-1, num_heads * head_size)
        storage.view(-1, num_heads * head_size).index_copy_(0, self._write_at, rows.to(storage.dtype))
        view = storage[:, : self._num_columns]
        return (view if self._slots is None else view.index_select(0, self._slots)).transpose(1, 2)


def _attention_dtype(states: Tensor) -> torch.dtype:
    """What attention computes with: under autocast it would narrow wider states at every step anew."""
    device_type = states.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else states.dtype
