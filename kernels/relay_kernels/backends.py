"""Which implementation of an op runs: the PyTorch reference anywhere, Triton on CUDA tensors or in its interpreter."""

from __future__ import annotations

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch

BACKENDS = ("auto", "reference", "triton")


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported; looks for the package without importing it."""
    return importlib.util.find_spec("triton") is not None


def is_interpreting() -> bool:
    """Whether Triton's interpreter, for which CPU tensors will do, was asked for: TRITON_INTERPRET=1 at the start."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not_triton(device: torch.device) -> str | None:
    """The reason why Triton cannot run on tensors of `device`, or None when it can."""
    if not has_triton():
        return "the package 'triton' is not installed"
    if device.type == "cuda" or is_interpreting():
        return None
    return f"the tensors are on {device.type}, not on a CUDA device"


def choose_backend(op: str, backend: str, device: torch.device, *, why_not: str | None = None) -> str:
    """`reference` or `triton` for a call of `op` on tensors of `device`.

    "auto" takes Triton on CUDA tensors and the reference elsewhere; the interpreter runs only when "triton" is asked
    for. `why_not` is the op's own reason against Triton for these arguments, such as a dtype. Raises ValueError for a
    name that is no backend and RuntimeError for an explicit backend that cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} of {op} is unknown; it is one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    reason = why_not_triton(device) or why_not
    if backend == "triton" and reason is not None:
        raise RuntimeError(f"backend='triton' of {op} cannot run: {reason}")
    return "triton" if backend == "triton" or (reason is None and device.type == "cuda") else "reference"


def on_device(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's CUDA device the current one, which is where Triton launches; nothing for other devices."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
