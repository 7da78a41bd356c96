"""Randomness as a function of where training stands, so that a resumed run repeats it without a saved generator."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Within it torch's generators start from the seed of `parts`; afterwards they are as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed(*parts))
        yield
