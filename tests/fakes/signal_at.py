"""SignalAt: a callback that sends this process a signal at one moment of a run."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class SignalAt(Callback):
    """Sends SIGTERM in the hook `moment`, the first time that `step` optimiser steps are done by then."""

    def __init__(self, moment: str, step: int = 0, signal_name: str = "SIGTERM") -> None:
        self.step = step
        self.number = signal.Signals[signal_name]
        self.is_sent = False
        setattr(self, moment, self._send)

    def _send(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:  # noqa: ARG002
        if not self.is_sent and trainer.global_step == self.step:
            self.is_sent = True
            os.kill(os.getpid(), self.number)
