"""PredictionWriter: what `predict` decodes, as lines of JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from relay_lightning.callbacks.rollout_writer import completion_fields
from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.data.stream import CompletionBatch
from relay_lightning.files import new_file
from relay_lightning.json_lines import json_line


class PredictionWriter(Callback):
    """Writes the completions of `predict` to `predictions.jsonl` of the run folder, a row each."""

    def __init__(self) -> None:
        self._reserved = ExitStack()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reserves the file before any model is loaded. Raises as `new_file` does."""
        self._reserved.enter_context(new_file(self._path(trainer)))

    @override
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: CompletionBatch,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        with self._path(trainer).open("a", encoding="utf-8") as file:
            file.writelines(map(json_line, prediction_rows(outputs)))

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank_zero_info(f"Predictions: {self._path(trainer)}")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._reserved.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._reserved.close()

    @staticmethod
    def _path(trainer: Trainer) -> Path:
        return RunFolder.of(trainer).predictions(trainer.global_rank)


def prediction_rows(batch: CompletionBatch) -> Iterator[dict[str, Any]]:
    """One row of plain types for each completion."""
    for prompt, completion in zip(batch.prompts, batch.completions, strict=True):
        yield {
            "prompt_id": prompt.prompt_id,
            "question": prompt.question,
            "answer": prompt.answer,
            **completion_fields(completion),
        }
