"""Default number formats around code that is not a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def default_fp32() -> Iterator[None]:
    """Within it new tensors are fp32: under bf16-true and 16-true, Lightning makes them lower in every step."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)
