"""Runs of the real command line on the small pair."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401 - its log keeps the stderr of its import, which one test's capture must not be
import pytest
import yaml


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command left behind."""

    exit_code: int
    output: str
    errors: str

    @property
    def sentence(self) -> str:
        """The last line of the error output; a traceback is none."""
        assert "Traceback" not in self.errors, self.errors
        return self.errors.strip().splitlines()[-1]


@pytest.fixture
def config(small_pair, tmp_path: Path) -> Path:
    """A GRPO configuration of six steps, two on each rollout, a checkpoint at every step."""
    problems = small_pair.problems
    settings = {
        "trainer": {"max_steps": 6, "limit_val_batches": 0, "log_every_n_steps": 1, "enable_model_summary": False},
        "model": {
            "class_path": "GRPOModule",
            "init_args": {
                "student": small_pair.student,
                "teacher": small_pair.teacher,
                "group_size": 4,
                "max_num_seqs": 16,
                "max_completion_tokens": 32,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            },
        },
        "data": {
            "class_path": "PromptDataModule",
            "init_args": {
                **dict.fromkeys(("train", "val", "test"), problems),
                **dict.fromkeys(("num_train_problems", "num_val_problems", "num_test_problems"), None),
                "prompts_per_rollout": 4,
                "steps_per_rollout": 2,
            },
        },
        "checkpoint": {"every_n_train_steps": 1},
        "report": {"num_router_seeds": 1},
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Runs one command line in this process, in an empty folder."""
    from relay_lightning.__main__ import run

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> CommandResult:
        try:
            exit_code = run([str(argument) for argument in arguments])
        except SystemExit as ended:
            exit_code = int(ended.code or 0)
        captured = capfd.readouterr()
        return CommandResult(exit_code, captured.out, captured.err)

    return call


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts one command line as a process of its own, in an empty folder."""

    def call(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "relay_lightning", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return call
