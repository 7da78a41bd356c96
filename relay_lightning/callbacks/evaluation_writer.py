"""EvaluationWriter: what `validate` and `test` measured, on the terminal and as a file of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.evaluation.evaluate import Judged
from relay_lightning.evaluation.held_out import held_out_fields, held_out_lines
from relay_lightning.evaluation.summary import installed_versions
from relay_lightning.processes import gather_in_turn
from relay_lightning.terminal import print_line


class EvaluationWriter(Callback):
    """Writes `test.json` (or `validate.json`) into the run folder; if it is taken, `test-2.json` and so on.

    Args:
        num_samples: completions of every problem; the accuracy is then their average (avg@k), and pass@k is added.
        temperature: of the student's samples; 0 is greedy, of which there is one.
    """

    def __init__(self, num_samples: int = 1, temperature: float = 0.0) -> None:
        if num_samples < 1 or temperature < 0:
            raise ValueError(
                "evaluation.num_samples must be at least 1 and evaluation.temperature at least 0, "
                f"but they are {num_samples} and {temperature}."
            )
        if num_samples > 1 and temperature == 0:
            raise ValueError(
                f"evaluation.num_samples is {num_samples}, but greedy completions of a problem are all alike; "
                "set evaluation.temperature above 0."
            )
        self.num_samples = num_samples
        self.temperature = temperature
        self._judged: list[Judged] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.eval_num_samples, pl_module.eval_temperature = self.num_samples, self.temperature

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[Judged],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._judged += outputs

    on_validation_batch_end = on_test_batch_end

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        judged, self._judged = gather_in_turn(self._judged), []
        if not trainer.is_global_zero:
            return
        figures = held_out_fields(judged)
        stage = trainer.state.fn.value if trainer.state.fn is not None else "test"
        path = write_new(RunFolder.of(trainer).path, stage, json.dumps(self._identity(trainer, pl_module) | figures))
        for line in [*held_out_lines(figures), f"written to {path}"]:
            print_line(line)

    on_validation_end = on_test_end

    def _identity(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Identity of the runs and models that the results belong to."""
        ckpt_path = trainer.ckpt_path
        return {
            "checkpoint": None if ckpt_path is None else str(ckpt_path),
            "student": pl_module.student_name,
            "teacher": pl_module.teacher_name,
            "temperature": self.temperature,
            "seed": pl_module.seed,
            "max_completion_tokens": pl_module.max_completion_tokens,
            **asdict(pl_module.call_limits),
            "versions": installed_versions(),
        }


def write_new(folder: Path, name: str, text: str) -> Path:
    """Writes `text` to `name.json`, or to the first of `name-2.json`, `name-3.json`, ... that does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text + "\n")
        except FileExistsError:
            number += 1
        else:
            return path
