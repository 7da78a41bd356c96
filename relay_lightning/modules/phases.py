"""PhaseClock: the seconds of a training step, phase by phase, and the same phases by name in Lightning's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

ROLLOUT, REWARD, COLLATE, LOSS = "rollout", "reward", "collate", "loss"
"""Decoding; judging and scoring; micro-batches with what the loss needs beside them; a forward pass with its loss."""


class PhaseClock:
    """`with clock(ROLLOUT): ...` adds up the seconds, and names the region `[Relay]rollout` to the profiler."""

    def __init__(self, profile: Callable[[str], AbstractContextManager] = nullcontext) -> None:
        self._profile = profile
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started_s = time.perf_counter()
        with self._profile(f"[Relay]{phase}"):
            yield
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started_s

    def take(self, *phases: str) -> dict[str, float]:
        """Their seconds since they were taken last, as `time/<phase>_s`."""
        return {f"time/{phase}_s": self._seconds.pop(phase, 0.0) for phase in phases}


def wait_for_device(device: torch.device) -> None:
    """A GPU works on after its commands are given: without this, the clock would stop too early."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
