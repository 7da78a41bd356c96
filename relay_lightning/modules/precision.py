"""Number formats around decoding, whatever precision the trainer is set to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def decoding_precision(device: torch.device) -> Iterator[None]:
    """Around everything that runs without gradients inside a training or validation step.

    New tensors are fp32: under bf16-true and 16-true, Lightning makes them lower throughout a step. Under mixed
    precision the weights are cast once and kept, where Lightning's own context would cast them anew at every token;
    they are forgotten at the end, before the weights change.
    """
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(
            device.type,
            dtype=torch.get_autocast_dtype(device.type),
            enabled=torch.is_autocast_enabled(device.type),
            cache_enabled=True,
        ):
            yield
    finally:
        torch.clear_autocast_cache()
        torch.set_default_dtype(previous)
