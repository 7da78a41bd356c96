"""One measurement: an op at one shape, with its check and everything that is timed beside it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.kernels.bars import Bar
from benchmarks.kernels.gate import Check

Work = Callable[[Any], object]
"""One call on a set of inputs."""
COPY = "copy"
"""The ceiling of an op that memory decides: a plain copy of as many bytes."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured. `inputs` stands for a set of them, whatever its type."""

    op: str
    setting: str
    shape: Mapping[str, int]
    make_inputs: Callable[[], Any]
    """A fresh set; several are made and take turns, so that each call finds its inputs outside the cache."""
    ours: Work
    check: Callable[[Any], list[Check]]
    """Judges `ours` on a set of inputs; may use it up."""
    num_bytes: int
    """Bytes that have to be moved, whoever does it."""
    bars: tuple[Bar, ...]
    rivals: Mapping[str, Work]
    yardsticks: Mapping[str, Work] = field(default_factory=dict)
    """Parts of the op that bars compare it with; nobody competes with them."""
    absent: tuple[str, ...] = ()
    """Rivals that are not installed."""
    ceiling: str | None = COPY
    """`COPY`, or the yardstick that no implementation can undercut, or None where only the launch counts."""
    num_flops: int = 0
    """Operations of the yardstick `ceiling`."""
    is_graphed: bool = True
    is_intact: Callable[[Any], bool] = lambda _: True
    """Whether a set of inputs, after all calls, still made the last one do the whole work."""

    @property
    def title(self) -> str:
        """Op, setting and shape."""
        shape = ", ".join(f"{name} {size:,}" for name, size in self.shape.items())
        return f"{self.op}, {self.setting} ({shape})"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled for the shapes of its first call; before that not even the compiler is imported."""
    compile_once = functools.cache(lambda: torch.compile(function, dynamic=False))

    def run(*arguments: Any) -> Any:
        return compile_once()(*arguments)

    return run


def is_importable(package: str) -> bool:
    """Whether a rival is installed, and of use: those that are not PyTorch need a CUDA device.

    Importing it is left to its first call, where a package that does not fit this PyTorch costs its own figures only.
    """
    return torch.cuda.is_available() and importlib.util.find_spec(package) is not None
