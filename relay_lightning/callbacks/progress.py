"""StepProgress: one bar over the optimiser steps, with the metrics that the module marks for it."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm
from typing_extensions import override

THROUGHPUT = "throughput/tokens_per_s"
LOG_FILE_INTERVAL_S = 30.0
"""Between two lines when the output is no terminal but a file."""


class StepProgress(ProgressBar):
    """A progress bar for runs whose length is a number of optimiser steps."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._is_enabled = True

    @override
    def disable(self) -> None:
        """Called by Lightning on all processes but the first."""
        self._is_enabled = False

    @override
    def enable(self) -> None:
        self._is_enabled = True

    @override
    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints above the bar."""
        with tqdm.external_write_mode():
            print(*args, **kwargs)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._bar = tqdm(
            desc="training",
            unit="step",
            total=int(total) if total != float("inf") else None,
            initial=trainer.global_step,
            disable=not self._is_enabled,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else LOG_FILE_INTERVAL_S,
        )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None or trainer.global_step == self._bar.n:
            return
        metrics = trainer.progress_bar_metrics
        shown = {name.removeprefix("time/"): f"{float(value):.3g}" for name, value in metrics.items()}
        if THROUGHPUT in trainer.callback_metrics:
            shown["tok/s"] = f"{float(trainer.callback_metrics[THROUGHPUT]):.0f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
