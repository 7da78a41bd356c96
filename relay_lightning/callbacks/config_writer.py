"""ConfigWriter: the complete configuration of a run, in its folder."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.files import write_atomically

CONFIG_KEY = "config"
"""Where a checkpoint keeps the configuration of its run, as YAML."""


class ConfigWriter(Callback):
    """Writes `config.yaml` when training begins (from then on the folder holds a run), and into every checkpoint.

    Args:
        text: the configuration as YAML.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            write_atomically(RunFolder.of(trainer).config, self._text)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = self._text
