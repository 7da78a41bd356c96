"""LastCheckpoint: the one checkpoint that a run continues from."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.interruption import stop_signals


class LastCheckpoint(Checkpoint):
    """Keeps `checkpoints/last.ckpt` of the run folder up to date, always as of the end of an optimiser step.

    It is written after Lightning has logged and validated the step. An interrupted run saves its last finished step
    from wherever it is: weights and optimiser have not changed since, and the position in the data is remembered. A
    validation that was due at that step and not finished is made up for on resume.

    Further checkpoints, such as the best by a metric, are Lightning's `ModelCheckpoint` in `trainer.callbacks`.

    Args:
        every_n_train_steps: optimiser steps from one checkpoint to the next; the last step is always saved.
    """

    def __init__(self, every_n_train_steps: int = 10) -> None:
        if every_n_train_steps < 1:
            raise ValueError(f"checkpoint.every_n_train_steps must be at least 1, but is {every_n_train_steps}.")
        self.every_n_train_steps = every_n_train_steps
        self._saved_step: int | None = None
        self._finished_step: int | None = None
        self._position: dict[str, Any] | None = None
        """State of Lightning's loops at the end of the last finished step."""
        self._is_validation_due = False
        self._is_saving = False

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"is_validation_due": self._is_saving and self._is_validation_due}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_validation_due = state_dict["is_validation_due"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The step a run begins or resumes at needs no checkpoint: it has one, or nothing was learnt yet.
        self._saved_step = self._finished_step = trainer.global_step
        self._make_up_validation(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._save_every_n_steps(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._finished_step:
            return  # in the middle of accumulated gradients, which no checkpoint holds
        loop = trainer.fit_loop
        self._finished_step, self._position = trainer.global_step, loop.state_dict()
        self._is_validation_due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_validation_due = False

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_every_n_steps(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # A run that has had all of its steps does not train on resume, and so has not come by `on_train_start`.
        pl_module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        self._make_up_validation(trainer)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._is_saving and self._position is not None:
            checkpoint["loops"]["fit_loop"] = self._position

    def save(self, trainer: Trainer) -> None:
        """Writes the checkpoint of the last finished step, once. All processes must call it together."""
        if self._saved_step == self._finished_step:
            return
        with stop_signals.held():
            self._is_saving = True
            try:
                # weights_only=False: with the loops and the optimiser.
                trainer.save_checkpoint(RunFolder.of(trainer).last_checkpoint, weights_only=False)
            finally:
                self._is_saving = False
            self._saved_step = self._finished_step

    def _save_every_n_steps(self, trainer: Trainer) -> None:
        if trainer.global_step % self.every_n_train_steps == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)

    def _make_up_validation(self, trainer: Trainer) -> None:
        """Runs the validation that the checkpoint says is due, as Lightning runs it at the end of a step."""
        if not self._is_validation_due:
            return
        val_loop = trainer.fit_loop.epoch_loop.val_loop
        val_loop.restarting = False
        trainer.validating = True
        val_loop.run()
        trainer.training = True
