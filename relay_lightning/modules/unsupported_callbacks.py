"""Callbacks of Lightning that a relay module cannot run under, with the reason and what to set instead."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
)

COPIES = "copies the module before its student is loaded; decay the learning rate with model.lr_scheduler instead"
REASONS: dict[type[Callback], str] = {
    StochasticWeightAveraging: COPIES,
    WeightAveraging: COPIES,
    GradientAccumulationScheduler: "changes the micro-batches of an optimizer step while rollouts are divided into "
    "them; set trainer.accumulate_grad_batches",
    BatchSizeFinder: "tries out batch sizes, which are part of what a run trains on; set them in data, and see with "
    "`python -m relay_lightning plan` whether they fit",
    LearningRateFinder: "tries out learning rates in an attribute that the module does not have; set lr of "
    "model.optimizer",
    ModelPruning: "prunes the module before its student is loaded; prune the student's own checkpoint",
    BaseFinetuning: "freezes layers before the student is loaded; to train few weights set model.lora",
    ThroughputMonitor: "measures batches of tensors, which a rollout is not; throughput/ and time/ are logged "
    "without it",
}
"""Class of a callback, subclasses included -> why it cannot work."""


def require_supported_callbacks(callbacks: Iterable[Callback]) -> None:
    """Raises ValueError for a callback that cannot work with a relay module."""
    for callback in callbacks:
        for kind, reason in REASONS.items():
            if isinstance(callback, kind):
                raise ValueError(f"trainer.callbacks has {type(callback).__name__}, which {reason}.")
