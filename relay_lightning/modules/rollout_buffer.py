"""The rollout that is being trained on, kept between optimiser steps and saved with a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from relay_lightning.data.collate import train_batches_from_plain, train_batches_to_plain
from relay_lightning.data.stream import RolloutBatch
from relay_lightning.types import TrainBatch


class RolloutBuffer:
    """The micro-batches of one rollout, on the CPU, and the figures that are logged with each of its steps."""

    def __init__(self, rollout_index: int, train_batches: Sequence[TrainBatch], metrics: dict[str, float]) -> None:
        self.rollout_index = rollout_index
        self.train_batches = list(train_batches)
        self.metrics = metrics

    @classmethod
    def empty(cls) -> RolloutBuffer:
        """No rollout: before the first one is decoded."""
        return cls(-1, [], {})

    def micro_batch(self, batch: RolloutBatch) -> TrainBatch:
        """The micro-batch that the data loader says is next. Raises RuntimeError if it belongs to another rollout."""
        if batch.rollout_index != self.rollout_index or batch.num_micro_batches != len(self.train_batches):
            raise RuntimeError(
                f"Micro-batch {batch.micro_batch_index} of {batch.num_micro_batches} of rollout {batch.rollout_index} "
                f"is next, but rollout {self.rollout_index} with {len(self.train_batches)} micro-batches is at hand. "
                "A run saved in the middle of a rollout goes on with the same number of processes."
            )
        return self.train_batches[batch.micro_batch_index]

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors."""
        return {
            "rollout_index": self.rollout_index,
            "train_batches": train_batches_to_plain(self.train_batches),
            "metrics": dict(self.metrics),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RolloutBuffer:
        """The inverse of `state_dict`."""
        return cls(state["rollout_index"], train_batches_from_plain(state["train_batches"]), state["metrics"])
