"""RolloutWriter: every rollout of a run as a line of JSON."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.json_lines import json_line, read_rows
from relay_lightning.types import Completion, Rollout, RolloutGroup, TokenSource

REMEDY = "; move the file away to go on without it"


class RolloutWriter(Callback):
    """Appends the rollouts of `module.last_groups` to `rollouts.jsonl`, each exactly once, resumed runs included.

    A row is written at the end of the first step that a rollout is trained on, and carries the number of steps done
    before that one. A resumed run drops the rows of steps that its checkpoint does not have: they come again.
    """

    def __init__(self) -> None:
        self._written: list[RolloutGroup] | None = None
        self._step_begun_at = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_rows(path, from_step=trainer.global_step)
        self._written = pl_module.last_groups

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step_begun_at = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        groups = pl_module.last_groups
        if groups is self._written:
            return
        with self._path(trainer).open("a", encoding="utf-8") as file:
            file.writelines(map(json_line, rollout_rows(groups, self._step_begun_at)))
        self._written = groups

    @staticmethod
    def _path(trainer: Trainer) -> Path:
        return RunFolder.of(trainer).rollouts(trainer.global_rank)


def rollout_rows(groups: list[RolloutGroup], step: int) -> Iterator[dict[str, Any]]:
    """One row of plain types for each rollout; `step` counts the optimiser steps done before it was decoded."""
    for group in groups:
        for rollout in group.rollouts:
            yield {
                "step": step,
                "prompt_id": group.prompt.prompt_id,
                "question": group.prompt.question,
                "answer": group.prompt.answer,
                "reward_case": group.reward_case.value,
                **_rollout_fields(rollout),
            }


def _rollout_fields(rollout: Rollout) -> dict[str, Any]:
    return {
        "is_correct": rollout.is_correct,
        "reward": rollout.reward,
        "advantage": rollout.advantage,
        **completion_fields(rollout.completion),
    }


def completion_fields(completion: Completion) -> dict[str, Any]:
    """A completion as plain types; its tokens' sources as a run-length code."""
    return {
        "sample_index": completion.sample_index,
        "call_ratio": completion.call_ratio,
        "num_malformed_calls": completion.num_malformed_calls,
        "finish_reason": completion.finish_reason.value,
        "spans": [
            [span.command_start, span.start, span.stop, span.num_requested_tokens, span.finish_reason.value]
            for span in completion.spans
        ],
        "text": completion.text,
        "token_ids": completion.token_ids,
        "token_source": encode_runs(completion.token_source),
    }


def encode_runs(sources: list[TokenSource]) -> list[list[Any]]:
    """Run-length code: [["student", 12], ["teacher", 3], ...]."""
    return [[source.name.lower(), sum(1 for _ in run)] for source, run in groupby(sources)]


def decode_runs(runs: list[list[Any]]) -> list[TokenSource]:
    """The source of every token from its run-length code."""
    return [TokenSource[name.upper()] for name, length in runs for _ in range(length)]


def cut_rows(path: Path, from_step: int) -> None:
    """Drops the rows of `from_step` and later from the end of the file, and a row that a kill left unfinished.

    Raises ValueError, and drops nothing, if a row before those is damaged or not of a run.
    """
    if not path.exists():
        return
    num_kept_bytes = 0
    for line_number, (stop, row) in enumerate(read_rows(path, hint=REMEDY), start=1):
        if not isinstance(row.get("step"), int):
            raise ValueError(f"{path}:{line_number} is no rollout of a run{REMEDY}.")
        if row["step"] >= from_step:
            break
        num_kept_bytes = stop
    os.truncate(path, num_kept_bytes)
