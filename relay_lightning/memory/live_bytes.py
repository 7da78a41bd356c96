"""Counts the bytes of the tensors that code makes, while they live."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary


class LiveBytes(TorchDispatchMode):
    """Within it, `current` and `peak` bytes of storages made within it. Fake tensors count as real ones would."""

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._storages = WeakIdKeyDictionary()

    def restart_peak(self) -> None:
        """Forgets the peak so far."""
        self.peak = self.current

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        arguments = {id(tensor.untyped_storage()) for tensor in args if isinstance(tensor, Tensor)}
        tree_map_only(Tensor, lambda tensor: self._count(tensor, arguments), outputs)
        return outputs

    def _count(self, tensor: Tensor, arguments: set[int]) -> None:
        storage = tensor.untyped_storage()
        # An output may be an argument, or a view of one, that was made outside.
        if storage in self._storages or id(storage) in arguments:
            return
        num_bytes = storage.nbytes()
        self._storages[storage] = num_bytes
        self.current += num_bytes
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._forget, num_bytes)

    def _forget(self, num_bytes: int) -> None:
        self.current -= num_bytes
