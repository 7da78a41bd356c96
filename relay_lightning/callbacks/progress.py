"""StepProgress: one bar over the optimiser steps, with micro-batches, rollouts and evaluations below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from typing_extensions import override

from relay_lightning import progress

THROUGHPUT = "throughput/tokens_per_s"
FIRST = {
    "reward": "reward",
    "train/accuracy": "accuracy",
    "relay/call_ratio": "call ratio",
    "loss": "loss",
    THROUGHPUT: "tok/s",
}
"""Metric -> what it is called; these come first, in this order, and fit into 80 columns."""
SHARES = ("accuracy", "call_ratio")
"""Endings of metrics that are shown in per cent."""


class StepProgress(ProgressBar):
    """A progress bar for runs whose length is a number of optimiser steps."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: progress.Work | None = None
        self._micro_batches: progress.Work | None = None
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
        progress.console.print(*map(str, args), markup=False)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        progress.start(self._is_enabled)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        progress.stop()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        progress.stop()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        num_steps = int(total) if total != float("inf") else None
        self._steps = progress.begin("training", num_steps, "steps", trainer.global_step, is_kept=True)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.accumulate_grad_batches > 1 and self._micro_batches is None:
            done = batch_idx % trainer.accumulate_grad_batches
            self._micro_batches = progress.begin("step", trainer.accumulate_grad_batches, "micro-batches", done)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._micro_batches is not None:
            self._micro_batches.update(self._micro_batches.done + 1)
        if self._steps is None or trainer.global_step == self._steps.done:
            return
        if self._micro_batches is not None:
            self._micro_batches.close()
            self._micro_batches = None
        known = {name: trainer.callback_metrics[name] for name in (THROUGHPUT,) if name in trainer.callback_metrics}
        self._steps.update(trainer.global_step, shown_figures({**trainer.progress_bar_metrics, **known}))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for work in (self._micro_batches, self._steps):
            if work is not None:
                work.close()
        self._steps = self._micro_batches = None


def shown_figures(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Names and values as they are shown, the most important first."""
    names = [*(name for name in FIRST if name in metrics), *(name for name in metrics if name not in FIRST)]
    return {FIRST.get(name, name.removeprefix("time/")): _shown(name, float(metrics[name])) for name in names}


def _shown(name: str, value: float) -> str:
    if name.endswith(SHARES):
        return f"{value:.1%}"
    return f"{value:.0f}" if name == THROUGHPUT else f"{value:.3g}"
