"""A CUDA graph's double on a CPU: records what a step does and repeats it over the same memory, without its Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS_BACK = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::lift_fresh"}
"""Operators that wait for a device, or bring values of the host to it: no capture survives them."""


class _Recorder(TorchDispatchMode):
    """Runs and notes every operator. Raises RuntimeError where a capture on a device would fail."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self._overwritten: list[tuple[Tensor, Tensor]] = []

    def undo(self) -> None:
        """A capture that fails has done nothing."""
        for tensor, before in reversed(self._overwritten):
            tensor.copy_(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masks = args[1] if name.startswith("aten::index") and isinstance(args[1], (list, tuple)) else ()
        if name in READS_BACK or any(mask is not None and mask.dtype == torch.bool for mask in masks):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._overwritten.append((value, value.clone()))
        outputs = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, outputs))
        return outputs


class RecordedCapture:
    """A `Capture`. To record is to do a step, so the first repetition does nothing."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def rehearse(self, step: Callable[[], None]) -> str | None:
        step()
        return None

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        recorder = _Recorder()
        try:
            with recorder:
                step()
        except RuntimeError:
            recorder.undo()
            raise
        self.num_captures += 1
        is_done = True

        def replay() -> None:
            nonlocal is_done
            self.num_replays += 1
            if not is_done:
                for call in recorder.calls:
                    _repeat(*call)
            is_done = False

        return replay


def _repeat(func: Any, args: Any, kwargs: Any, outputs: Any) -> None:
    """Runs an operator and puts what it gives where it first put it; views and in-place results are there already."""
    again = func(*args, **kwargs)
    outputs, again = (each if isinstance(each, (list, tuple)) else [each] for each in (outputs, again))
    for returned, old, new in zip(func._schema.returns, outputs, again, strict=False):
        if returned.alias_info is None and isinstance(old, Tensor):
            old.copy_(new)
