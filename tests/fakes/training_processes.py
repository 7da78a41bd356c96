"""Trains the small pair on several CPU processes, or in this one, by the same description."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from relay_lightning.callbacks.throughput import Throughput
from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.sft import WarmupDataModule
from relay_lightning.modules.grpo import GRPOModule
from relay_lightning.modules.warmup import WarmupModule

PRELOADED = ["relay_lightning.modules.grpo", "relay_lightning.modules.warmup", "relay_lightning.callbacks.throughput"]
"""Imported once, by the server that the processes are forked from."""


@dataclass(frozen=True)
class Training:
    """One run, in a form that can be sent to a process. SGD shows how large gradients are; Adam would hide it."""

    pair: Any
    folder: Path
    """Takes `step=<n>.ckpt` of every optimiser step, and what each process saw."""
    stage: str = "grpo"
    module: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    max_steps: int = 3
    accumulate: int = 1
    trainer: dict[str, Any] = field(default_factory=dict)
    strategy: str | Callable[[], Any] = "ddp"
    """Of several processes: a name, or what makes the strategy."""
    resume_from: Path | None = None


@dataclass(frozen=True)
class Seen:
    """What one process saw of a run."""

    metrics: list[dict[str, float]]
    """Everything logged, after each optimiser step."""
    samples: list[tuple[int, int, list[int]]]
    """(prompt, sample, tokens) of the rollout decoded last."""


def train(training: Training, num_processes: int = 1) -> list[Seen]:
    """What every process saw of the run, by rank; in this process if it is one alone."""
    return train_all([training], num_processes)[0]


def train_all(trainings: Sequence[Training], num_processes: int) -> list[list[Seen]]:
    """Several runs, one after the other, by the same processes."""
    if num_processes == 1:
        return [[_run(training, 1)] for training in trainings]
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    arguments = (num_processes, _free_port(), trainings)
    torch.multiprocessing.start_processes(_work, arguments, num_processes, start_method="forkserver")
    return [
        [torch.load(_report(training, rank), weights_only=False) for rank in range(num_processes)]
        for training in trainings
    ]


def final_checkpoint(training: Training) -> dict[str, Any]:
    """The checkpoint of the last step."""
    return torch.load(training.folder / f"step={training.max_steps}.ckpt", weights_only=True)


def compare(trainings: list[Training], num_processes: int) -> None:
    """Asserts that so many processes take the steps of one: the same samples, logged figures and weights."""
    alone = [replace(training, folder=training.folder / "alone") for training in trainings]
    together = [replace(training, folder=training.folder / "together") for training in trainings]
    seen_alone, seen_together = train_all(alone, 1), train_all(together, num_processes)
    for runs in zip(alone, together, seen_alone, seen_together, strict=True):
        _assert_same_run(*runs)


def _work(rank: int, num_processes: int, port: int, trainings: Sequence[Training]) -> None:
    torch.set_num_threads(1)
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": num_processes}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for training in trainings:
        seen = _run(training, num_processes)
        torch.save(seen, _report(training, rank))


def _run(training: Training, num_processes: int) -> Seen:
    pair = training.pair
    models = {"student": pair.student, "teacher": pair.teacher, "max_completion_tokens": 28}
    models["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.5)
    source = dict.fromkeys(("train", "val", "test"), pair.problems)
    if training.stage == "grpo":
        module: Any = GRPOModule(**{"group_size": 4, **models, **training.module})
        data: Any = PromptDataModule(**{"prompts_per_rollout": 4, **source, **training.data})
    else:
        models["cache_dir"] = str(training.folder / "cache")
        module = WarmupModule(**{"samples_per_prompt": 2, **models, **training.module})
        data = WarmupDataModule(**{"batch_size": 4, **source, **training.data})
    recorder = _Recorder()
    _trainer(training, num_processes, recorder).fit(module, data, ckpt_path=training.resume_from, weights_only=True)
    groups = getattr(module, "last_groups", [])
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    return Seen(recorder.metrics, [(done.prompt_id, done.sample_index, done.token_ids) for done in completions])


def _trainer(training: Training, num_processes: int, recorder: Callback) -> Trainer:
    strategy: Any = "auto"
    if num_processes > 1:
        strategy = training.strategy if isinstance(training.strategy, str) else training.strategy()
    every_step = ModelCheckpoint(training.folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    settings: dict[str, Any] = {
        "max_steps": training.max_steps,
        "accelerator": "cpu",
        "devices": num_processes,
        "strategy": strategy,
        "accumulate_grad_batches": training.accumulate,
        "callbacks": [every_step, *([Throughput()] if training.stage == "grpo" else []), recorder],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": training.folder,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(**(settings | training.trainer))


class _Recorder(Callback):
    """Keeps what was logged at the end of every optimiser step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self._step = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def _assert_same_run(alone: Training, together: Training, seen_alone: list[Seen], seen_together: list[Seen]) -> None:
    """The same samples, weights and logged figures, on every process."""
    samples, expected_samples = (sorted(chain(*(seen.samples for seen in run))) for run in (seen_together, seen_alone))
    assert samples == expected_samples, f"{together.folder}: other samples"
    for seen in seen_together:
        assert len(seen.metrics) == alone.max_steps
        for metrics, expected in zip(seen.metrics, seen_alone[0].metrics, strict=True):
            figures, expected_figures = _global_figures(metrics), _global_figures(expected)
            assert figures == pytest.approx(expected_figures, rel=1e-3, abs=2e-5), together.folder
    torch.testing.assert_close(
        final_checkpoint(together)["state_dict"], final_checkpoint(alone)["state_dict"], rtol=1e-4, atol=1e-5
    )


def _global_figures(metrics: dict[str, float]) -> dict[str, float]:
    """All that was logged, of speed only what the clock has no part in."""
    figures = {name: value for name, value in metrics.items() if not name.startswith(("time/", "throughput/"))}
    if "throughput/samples_per_s" in metrics:
        figures["tokens_per_sample"] = metrics["throughput/tokens_per_s"] / metrics["throughput/samples_per_s"]
    return figures


def _report(training: Training, rank: int) -> Path:
    return training.folder / f"seen-{rank}.pt"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
