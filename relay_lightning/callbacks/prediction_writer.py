"""PredictionWriter: what `predict` decodes, as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from relay_lightning.callbacks.rollout_writer import completion_fields
from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.data.stream import CompletionBatch


class PredictionWriter(Callback):
    """Writes the completions of `predict` to `predictions.jsonl` of the run folder, a row each."""

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._path(trainer)
        if path.exists():
            raise FileExistsError(
                f"{path} exists already and is not overwritten; move it away, or name another folder with --run_dir."
            )
        path.parent.mkdir(parents=True, exist_ok=True)

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
            for row in prediction_rows(outputs):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank_zero_info(f"Predictions: {self._path(trainer)}")

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
