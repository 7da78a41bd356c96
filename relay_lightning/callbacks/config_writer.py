"""ConfigWriter: the complete configuration of a run, in its folder."""

from __future__ import annotations

from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.files import write_atomically

CONFIG_KEY = "config"
"""Where a checkpoint keeps the configuration of its run, as YAML."""


class ConfigWriter(Callback):
    """Writes `config.yaml` once the folder holds a run that must not be overwritten, and into every checkpoint.

    That is with the first checkpoint, or with the first step of a run that writes none: a run that fails earlier leaves
    its folder free for the corrected command.

    The loggers get it as the hyperparameters of the run.

    Args:
        text: the configuration as YAML.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._is_written = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_when_due(trainer, has_begun=False)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(self._text))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._write_when_due(trainer, has_begun=not trainer.checkpoint_callbacks)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_when_due(trainer, has_begun=True)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write_when_due(trainer, has_begun=False)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self._text

    def _write_when_due(self, trainer: Trainer, *, has_begun: bool) -> None:
        folder = RunFolder.of(trainer)
        if not self._is_written and trainer.is_global_zero and (has_begun or folder.has_checkpoint()):
            write_atomically(folder.config, self._text)
            self._is_written = True
