"""Calls of native ops whose tensors lie between guard bands, made in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GUARD_BYTES, GUARD = 4096, 0xFF  # As numbers the bytes are NaN or -1.
Call = dict[str, Any]


class GuardedMemory:
    """Copies tensors into memory of their own with a guard band on either side; views of one storage stay views."""

    def __init__(self) -> None:
        self._arenas: dict[int, Tensor] = {}
        """Address of a storage -> [bytes] uint8: a band, the copy, a band."""
        self._copied: list[Any] = []
        """Storages that are kept, so that none of another tensor gets their address."""

    def copy(self, value: Any) -> Any:
        """The same strides and values; what is no tensor with memory, as it is."""
        if not isinstance(value, Tensor) or value.is_meta:
            return value
        storage = value.untyped_storage()
        if storage.data_ptr() not in self._arenas:
            arena = torch.full((storage.nbytes() + 2 * GUARD_BYTES,), GUARD, dtype=torch.uint8)
            arena[GUARD_BYTES : GUARD_BYTES + storage.nbytes()] = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._arenas[storage.data_ptr()] = arena
            self._copied.append(storage)
        offset = GUARD_BYTES // value.element_size() + value.storage_offset()
        arena = self._arenas[storage.data_ptr()].untyped_storage()
        return torch.empty(0, dtype=value.dtype).set_(arena, offset, value.shape, value.stride())

    def empty_like(self, tensor: Tensor, **_: Any) -> Tensor:
        """In the place of `torch.empty_like`: contiguous, full of NaN, between guard bands."""
        return (
            tensor.new_empty(tensor.shape)
            if tensor.is_meta
            else self.copy(
                torch.full((tensor.numel() * tensor.element_size(),), GUARD, dtype=torch.uint8).view(tensor.dtype)
            ).view(tensor.shape)
        )

    def contents(self) -> list[Tensor]:
        """Every byte, the bands included."""
        return [arena.clone() for arena in self._arenas.values()]

    def has_whole_bands(self) -> bool:
        """True if nothing was written beside a tensor."""
        return all(
            bool((band == GUARD).all())
            for arena in self._arenas.values()
            for band in (arena[:GUARD_BYTES], arena[-GUARD_BYTES:])
        )


def outcome(op: Callable[..., Any], call: Call, same_as: Call) -> str:
    """`right`, `refused: <sentence>`, or what went wrong with a call whose result is to be that of `same_as`."""
    ours, theirs = GuardedMemory(), GuardedMemory()
    guarded = {name: ours.copy(value) for name, value in call.items()}
    before = ours.contents()
    empty_like, torch.empty_like = torch.empty_like, ours.empty_like
    try:
        result = op(**guarded)
    except ValueError as error:
        is_untouched = all(map(torch.equal, ours.contents(), before))
        return f"refused: {error}" if is_untouched else "refused after something was written"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    finally:
        torch.empty_like = empty_like
    if not ours.has_whole_bands():
        return "wrote beside a tensor"
    expected = op(**{name: theirs.copy(value) for name, value in same_as.items()}, backend="reference")
    # The caches that both wrote to; outputs are compared as numbers.
    if not all(map(torch.equal, ours.contents()[: len(before)], theirs.contents())):
        return "left other bytes in its arguments than the definition"
    try:
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4, equal_nan=True)
    except AssertionError as error:
        return f"wrong: {error}"
    return "right"


def outcomes_elsewhere(file: str, names: Sequence[str]) -> dict[str, str]:
    """Runs `file`, which prints `[name, outcome]` lines for the names it is given, in a process of its own.

    After a crash another process goes on behind the name at which the first one died.
    """
    found: dict[str, str] = {}
    while left := [name for name in names if name not in found]:
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        run = subprocess.run(
            [sys.executable, file], input=json.dumps(left), env=os.environ | {"PYTHONPATH": path},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        found |= dict(json.loads(line) for line in run.stdout.splitlines())
        if run.returncode and (unfinished := [name for name in left if name not in found]):
            how = signal.Signals(-run.returncode).name if run.returncode < 0 else f"exit code {run.returncode}"
            found[unfinished[0]] = f"died: {how}\n{run.stderr[-2000:]}"
    return found
