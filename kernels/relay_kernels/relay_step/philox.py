"""Counter-based random numbers: Philox4x32-10, the same bits on every device and in every batch.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A draw is a pure function of a key and
a counter, so that it depends on nothing but who draws it: not on neighbours, not on the batch size, not on a restart.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

NUM_ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
MASK_32 = 0xFFFFFFFF
NUM_UNIFORM_BITS = 24
"""What fp32 represents exactly in [0, 1)."""


class RandomStream(IntEnum):
    """Independent draws at the same position of a completion."""

    STUDENT = 0
    TEACHER = 1
    POLICY = 2


def philox_4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int | Tensor, int | Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words per counter.

    counter: four int64 tensors with values in [0, 2^32); key: two integers in [0, 2^32), or int64 tensors of them. All
    of broadcastable shapes. Returns int64 tensors with values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(NUM_ROUNDS):
        high_0, low_0 = _multiply(MULTIPLIERS[0], c0)
        high_1, low_1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK_32, (k1 + KEY_INCREMENTS[1]) & MASK_32
    return c0, c1, c2, c3


def philox_uniform(
    seed: int | Tensor, prompt_id: Tensor, sample_index: Tensor, position: Tensor, stream: int
) -> Tensor:
    """One fp32 uniform in [0, 1) per element, with 24 random bits.

    seed: any integer, its low 64 bits are the key; or an int64 tensor of those bits (`signed_seed`). prompt_id (0 <= id
    < 2^62), sample_index and position (below 2^32): int64 tensors. All of broadcastable shapes. The counter is
    (prompt_id mod 2^32, sample_index, position, stream + 4 * (prompt_id div 2^32)).
    """
    counter = (prompt_id & MASK_32, sample_index, position, stream + 4 * (prompt_id >> 32))
    word = philox_4x32(counter, (seed & MASK_32, (seed >> 32) & MASK_32))[0]
    return (word >> (32 - NUM_UNIFORM_BITS)).to(torch.float32) * 2.0**-NUM_UNIFORM_BITS


def signed_seed(seed: int) -> int:
    """The low 64 bits of any integer seed as the signed int64 that a tensor holds."""
    return (seed + 2**63) % 2**64 - 2**63


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the 64-bit product, in halves because int64 is signed."""
    low_part = constant * (word & 0xFFFF)  # below 2^48
    middle = constant * (word >> 16) + (low_part >> 16)  # below 2^49
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low_part & 0xFFFF)
