"""Decode steps as CUDA graphs: hundreds of small kernels in one launch, without Python between them.

A step reads and writes tensors that outlive the graphs, in place, and never asks the device for a value. What it reads
on the host (a seed, a shape) is frozen when it is captured, so all of that belongs to its key.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Step = Callable[[], object]
"""Work for the device, or what repeats it."""


class Capture(Protocol):
    """Captures decode steps as graphs."""

    def rehearse(self, step: Step) -> str | None:
        """Runs a step as it is. Returns why it cannot be captured, or None."""

    def __call__(self, step: Step) -> Step:
        """Records the device's work in a step without doing it, and returns what does it.

        Raises RuntimeError if it cannot.
        """


class StepGraphs:
    """Graphs of one model's decode steps. The first step of a key is run, the second captured, later ones replayed:
    nothing is compiled, loaded or allocated for the first time in a capture."""

    def __init__(self, capture: Capture, num_rows: int, device: torch.device) -> None:
        self._capture: Capture | None = capture
        self._replays: dict[Hashable, Step | None] = {}
        """Replays of each key's step; None after its first step."""
        self._num_rows = num_rows
        self._rows = torch.arange(num_rows, device=device)
        """[R]: the rows of the next steps, first of all, where all graphs find them."""

    def place(self, rows: Sequence[int]) -> Tensor | None:
        """Returns the given rows and some others, at a fixed address: their number is a power of two, or all (None)."""
        num_rows = 1 << max(len(rows) - 1, 0).bit_length()
        if num_rows >= self._num_rows:
            return None
        taken = set(rows)
        others = [row for row in range(self._num_rows) if row not in taken]
        placed = self._rows[:num_rows]
        placed.copy_(torch.tensor([*rows, *others[: num_rows - len(rows)]]))
        return placed

    def clear(self) -> None:
        """Drops all graphs, because memory that they refer to has moved."""
        self._replays.clear()

    def run(self, key: Hashable, step: Step) -> None:
        """Runs the step once, by its graph where there is one."""
        if self._capture is None:
            step()
        elif key not in self._replays:
            self._replays[key] = None
            self._turn_off(self._capture.rehearse(step))
        elif (replay := self._replays[key]) is not None:
            replay()
        else:
            try:
                replay = self._replays[key] = self._capture(step)
            except RuntimeError as error:
                self._turn_off(str(error).partition("\n")[0])
                step()
            else:
                replay()

    def _turn_off(self, reason: str | None) -> None:
        """Captures no more steps, if there is a reason."""
        if reason is not None:
            logger.warning("CUDA graphs are off, a decode step cannot be captured: %s", reason)
            self._capture = None
            self.clear()


def new_capture(device: torch.device) -> Capture | None:
    """Returns what captures steps on a device; None where there are no graphs."""
    return CudaCapture(device) if device.type == "cuda" else None


class CudaCapture:
    """Captures on a stream of its own into one pool of memory, which graphs share because they run in turn."""

    def __init__(self, device: torch.device) -> None:
        self._stream = _capture_stream(device)
        self._pool = _graph_pool(device)

    def rehearse(self, step: Step) -> str | None:
        """Runs a step as it is. Returns why it cannot be captured, or None.

        A capture that fails leaves PyTorch's random generators and allocator in capture mode, so a step that waits for
        the device must be known before.
        """
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        reasons = (str(warning.message) for warning in caught)
        return next((reason for reason in reasons if "synchronizing" in reason), None)

    def __call__(self, step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        # Not `torch.cuda.graph`, which empties the allocator's cache and collects garbage each time. Other threads,
        # such as those of a data loader, may go on to use the device.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        replay: Step = graph.replay
        return replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Returns one stream for all engines, because cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream(device)


@functools.cache
def _graph_pool(device: torch.device) -> tuple[int, int]:  # noqa: ARG001 - one for each device
    """Returns one memory pool for all engines; a pool keeps its segments reserved as long as the process lives."""
    pool: tuple[int, int] = torch.cuda.graph_pool_handle()
    return pool
