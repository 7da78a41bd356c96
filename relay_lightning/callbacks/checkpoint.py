"""LastCheckpoint: the one checkpoint that a run continues from."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from relay_lightning.callbacks.run_folder import RunFolder


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` of the run folder up to date, always at the end of an optimiser step.

    Further checkpoints, such as the best by a metric, are Lightning's `ModelCheckpoint` in `trainer.callbacks`.

    Args:
        every_n_train_steps: optimiser steps from one checkpoint to the next; the last step is always saved.
    """

    def __init__(self, every_n_train_steps: int = 10) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"checkpoint.every_n_train_steps must be at least 1, but is {every_n_train_steps}.")
        self.every_n_train_steps = every_n_train_steps
        self._saved_step: int | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The step a run begins or resumes at needs no checkpoint: it has one, or nothing was learnt yet.
        self._saved_step = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_train_steps == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint of the current step, once. All processes must call it together."""
        if self._saved_step != trainer.global_step:
            # weights_only=False: with the loops and the optimiser.
            trainer.save_checkpoint(RunFolder.of(trainer).last_checkpoint, weights_only=False)
            self._saved_step = trainer.global_step
