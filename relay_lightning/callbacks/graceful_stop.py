"""GracefulStop: SIGTERM and Ctrl-C end a run at the next optimiser step, with a checkpoint of exactly that step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from relay_lightning.callbacks.checkpoint import LastCheckpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STDERR = 2


class RunInterruptedError(RuntimeError):
    """A run was stopped by a signal, after its checkpoint was written."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
        """As shells report a process that a signal ended."""


class GracefulStop(Callback):
    """Takes SIGTERM and Ctrl-C during training; a second one stops at once.

    A step is finished first because only between steps are weights, optimiser and counters of one moment. Must be the
    last callback, so that what the others do at the end of a step is done before the checkpoint is written.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}
        self._step_begun_at = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_begun_at = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step_begun_at:
            return  # in the middle of accumulated gradients, which no checkpoint holds
        if trainer.strategy.reduce_boolean_decision(self._received is not None, all=False):
            self._stop(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        name = signal.Signals(number).name
        # print() is not allowed to be entered twice, which a signal handler cannot rule out
        message = f"\n{name}: finishing this step, then writing a checkpoint; once more stops at once.\n"
        os.write(STDERR, message.encode())

    def _stop(self, trainer: Trainer) -> None:
        number = self._received or signal.SIGTERM  # another process of this run was the one to be told
        kept = "no checkpoint was asked for"
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save(trainer)
                kept = "the checkpoint is written, --ckpt_path last continues here"
        raise RunInterruptedError(
            f"Stopped by {signal.Signals(number).name} after step {trainer.global_step}: {kept}.", number
        )

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
