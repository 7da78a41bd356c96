"""GracefulStop: SIGTERM and Ctrl-C end a run within seconds, with a checkpoint of the last finished step."""

from __future__ import annotations

import signal
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from relay_lightning.callbacks.checkpoint import LastCheckpoint
from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.interruption import Interrupted, stop_signals


class GracefulStop(Callback):
    """Stops a run on a signal wherever it is; a step that is not finished is given up and done again on resume.

    One process holds a signal back only from the optimiser's step, and from the end of a validation, until Lightning
    has logged it, so that weights, optimiser, counters and scalars are of one moment. Several processes have to stop
    together: they agree before each micro-batch. Should be the first callback, because Lightning installs handlers of
    its own before training.
    """

    def __init__(self) -> None:
        self._is_reporting = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stop_signals.install()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._between_steps(trainer)
        stop_signals.is_held = trainer.world_size > 1

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        stop_signals.is_held = True

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._between_steps(trainer)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:  # held until Lightning has logged it and it no longer counts as due
            stop_signals.is_held = True

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._between_steps(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_reporting = True
        self._between_steps(trainer)
        stop_signals.is_held = False

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        stop_signals.is_held = isinstance(exception, Interrupted)
        if isinstance(exception, Interrupted):
            self._keep(trainer)
            exception.sentence = f"Stopped by {exception.name} {self._outcome(trainer)}"
            if launcher := trainer.strategy.launcher:
                launcher.kill(signal.SIGTERM)  # the other processes of this machine

    def _between_steps(self, trainer: Trainer) -> None:
        """Raises Interrupted if this process, or one of several, has received a signal."""
        if trainer.world_size == 1:
            stop_signals.release()
        elif trainer.strategy.reduce_boolean_decision(stop_signals.received is not None, all=False):
            raise Interrupted(stop_signals.received or signal.SIGTERM)

    def _keep(self, trainer: Trainer) -> None:
        if not self._is_reporting:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.save(trainer)

    def _outcome(self, trainer: Trainer) -> str:
        has_checkpoint = RunFolder.of(trainer).last_checkpoint.exists()
        if self._is_reporting and has_checkpoint:
            return (
                f"in the report after step {trainer.global_step}: the checkpoint and the finished measurements are "
                "kept, --ckpt_path last measures the rest."
            )
        if has_checkpoint:
            return f"after step {trainer.global_step}: the checkpoint is written, --ckpt_path last continues here."
        if trainer.global_step == 0:
            return "before the first step was done: finished measurements are kept, the same command starts again."
        return f"after step {trainer.global_step}: there is no checkpoint of this run."
