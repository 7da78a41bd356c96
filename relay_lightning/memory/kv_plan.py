"""KVPlan: how many KV blocks a run gets, what they take, and how many rows they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from relay_lightning.engine.kv_budget import CPU_SHARE, GB, KVCacheGB, num_kv_blocks


@dataclass(frozen=True)
class KVPlan:
    """KV blocks of each model; both models have the same number of them."""

    num_blocks: int
    block_size: int
    student_bytes: int
    teacher_bytes: int

    @property
    def num_bytes(self) -> int:
        return self.student_bytes + self.teacher_bytes

    @property
    def kv_cache_gb(self) -> float:
        """The setting that gives an engine these blocks: their size, rounded up to the next kilobyte."""
        return (self.num_bytes // 1000 + 1) / 1e6

    def num_rows(self, num_tokens: int) -> int:
        """Returns how many rows of `num_tokens` tokens the blocks of a model hold."""
        return self.num_blocks // blocks_for(num_tokens, self.block_size)


@dataclass(frozen=True)
class KVDemand:
    """What decides the number of KV blocks."""

    kv_cache_gb: KVCacheGB
    block_size: int
    max_num_seqs: int
    student_bytes_per_token: int
    teacher_bytes_per_token: int
    least_tokens: int
    """Tokens of the longest row, which the blocks of a model have to hold."""
    longest: int
    """Tokens of the longest row in either model's vocabulary; `auto` on a GPU takes no more than rows of it need."""
    max_context: int
    """Longest context of the models, for rows of which an engine takes memory at most."""
    device_type: str
    memory_bytes: float
    """Size of the device's memory."""

    @property
    def takes_what_is_left(self) -> bool:
        """Whether the blocks get the memory that nothing else needs: on a GPU under `auto`."""
        return self.kv_cache_gb == "auto" and self.device_type != "cpu"

    def gb_for(self, num_rows: int) -> float:
        """Returns the `kv_cache_gb` that holds so many rows of the longest length, rounded up to three digits."""
        return round_up(num_rows * blocks_for(self.least_tokens, self.block_size) * self._bytes_per_block / GB)

    def plan(self, free_bytes: float) -> KVPlan:
        """Returns the blocks. Raises ValueError for a `kv_cache_gb` that does not hold one row of the longest length.

        free_bytes: left by all that is in memory during decoding. On a GPU, `auto` takes it, but always enough for one
        row. On a CPU it takes a share of all memory, as the engine does.
        """
        least = blocks_for(self.least_tokens, self.block_size)
        if self.takes_what_is_left:
            most = self.max_num_seqs * blocks_for(self.longest, self.block_size)
            return self._of(max(least, min(most, int(free_bytes // self._bytes_per_block))))
        gigabytes = CPU_SHARE * self.memory_bytes / GB if self.kv_cache_gb == "auto" else float(self.kv_cache_gb)
        most = self.max_num_seqs * blocks_for(self.max_context, self.block_size)
        bytes_per_token = self.student_bytes_per_token + self.teacher_bytes_per_token
        num_blocks = num_kv_blocks(gigabytes, bytes_per_token, self.block_size, most, torch.device(self.device_type))
        if num_blocks < least:
            raise ValueError(
                f"kv_cache_gb: {self.kv_cache_gb} holds {num_blocks * self.block_size} tokens, and the longest prompt"
                f" and completion have {self.least_tokens}, which take {self.gb_for(1):g} GB."
            )
        return self._of(num_blocks)

    @property
    def _bytes_per_block(self) -> int:
        return self.block_size * (self.student_bytes_per_token + self.teacher_bytes_per_token)

    def _of(self, num_blocks: int) -> KVPlan:
        num_tokens = num_blocks * self.block_size
        return KVPlan(
            num_blocks,
            self.block_size,
            num_tokens * self.student_bytes_per_token,
            num_tokens * self.teacher_bytes_per_token,
        )


def blocks_for(num_tokens: int, block_size: int) -> int:
    """Returns the number of blocks that hold so many tokens."""
    return -(-num_tokens // block_size)


def round_up(value: float, num_digits: int = 3) -> float:
    """Returns the next larger number of `num_digits` significant digits."""
    exponent = num_digits - 1 - math.floor(math.log10(value))
    return float(f"{math.ceil(value * 10**exponent - 1e-9) / 10**exponent:.{num_digits}g}")
