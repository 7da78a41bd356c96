"""EngineMemory: the sessions of an engine's models, and the KV blocks that both have."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from relay_lightning.engine.kv_budget import KVCacheGB, num_kv_blocks
from relay_lightning.engine.model_runner import ModelRunner
from relay_lightning.relay.teacher import Teacher

logger = logging.getLogger(__name__)


class EngineMemory:
    """Opens and closes student and teacher together, and gives them the same number of KV blocks."""

    def __init__(self, runner: ModelRunner, teacher: Teacher | None, kv_cache_gb: KVCacheGB) -> None:
        """runner: the student's."""
        self._runner = runner
        self._teacher = teacher
        self._kv_cache_gb = kv_cache_gb
        self._num_blocks = 0
        """KV blocks of each model; 0 when they have no memory."""
        self._bytes_per_token = 0
        """Size of a token's keys and values in these blocks, of both models."""
        self._most_blocks: int | None = None
        """Blocks for which memory is known to suffice, once it has not."""
        self._is_open = False

    @property
    def num_tokens(self) -> int:
        """Tokens that the blocks of a model hold."""
        return self._num_blocks * self._runner.block_size

    @torch.inference_mode(False)  # What lives longer than a call must not be an inference tensor.
    @torch.no_grad()
    def acquire(self, longest: Callable[[], int]) -> None:
        """Opens the models, and allocates blocks if they have none.

        longest: gives the tokens of the longest sequence in flight. Raises RuntimeError if the new blocks cannot hold
        it, because less memory is free than there was.
        """
        if not self._is_open:
            self._is_open = True
            self._runner.open()
            if self._teacher is not None:
                self._teacher.open()
            if self._num_blocks and self._bytes_per_token != self._measure():  # in another precision
                self.allocate(0)
        if not self._num_blocks:
            self.allocate(self._blocks_that_fit())
            self._require(self._num_blocks, longest())

    def close(self) -> None:
        """Closes the models; blocks keep their memory."""
        if self._is_open:
            self._is_open = False
            if self._teacher is not None:
                self._teacher.close()
            self._runner.close()

    def allocate(self, num_blocks: int) -> None:
        """Gives each model so many blocks; 0 gives the memory back. No sequence may hold any."""
        self._runner.allocate(num_blocks)
        if self._teacher is not None:
            self._teacher.allocate(num_blocks)
        self._num_blocks = num_blocks

    def halve(self, longest: int) -> None:
        """Allocates half as many blocks, for good. longest: tokens of a sequence that they must hold.

        Raises RuntimeError if they do not.
        """
        before, self._most_blocks = self._num_blocks, self._num_blocks // 2
        self._require(self._most_blocks, longest)
        logger.warning("Out of memory with %d KV blocks: decoding goes on with %d.", before, self._most_blocks)
        self.allocate(self._most_blocks)

    def _require(self, num_blocks: int, longest: int) -> None:
        if num_blocks * self._runner.block_size < longest:
            raise RuntimeError(
                "Memory does not suffice to decode a single completion; allow fewer tokens, or load smaller models."
            )

    def _blocks_that_fit(self) -> int:
        runner, longest = self._runner, self._runner.model.max_context
        if self._teacher is not None and self._teacher.is_local:
            longest = max(longest, self._teacher.max_context)
        most = self._most_blocks or runner.num_rows * -(-longest // runner.block_size)
        self._bytes_per_token = self._measure()
        return num_kv_blocks(self._kv_cache_gb, self._bytes_per_token, runner.block_size, most, runner.model.device)

    def _measure(self) -> int:
        teacher_bytes = 0 if self._teacher is None else self._teacher.kv_bytes_per_token()
        return self._runner.model.kv_bytes_per_token() + teacher_bytes
