"""Two processes train as one does."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("ddp_training.py")


def train(pair: Any, num_processes: int, stage: str, saves: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The last checkpoint and the metrics of a run in a program of its own."""
    command = [
        sys.executable,
        str(PROGRAM),
        pair.student,
        pair.teacher,
        pair.problems,
        str(num_processes),
        stage,
        str(saves),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("metrics "))
    return torch.load(saves / "step=3.ckpt", weights_only=True), ast.literal_eval(line.removeprefix("metrics "))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "warmup"])
def test_two_processes_take_the_steps_of_one(small_pair: Any, tmp_path: Path, stage: str) -> None:
    """Same prompts, same samples, same normalisers: only the order of sums differs."""
    alone, alone_metrics = train(small_pair, 1, stage, tmp_path / "one")
    together, together_metrics = train(small_pair, 2, stage, tmp_path / "two")
    torch.testing.assert_close(together["state_dict"], alone["state_dict"], rtol=1e-4, atol=1e-5)
    for name in ("val/accuracy", "val/call_ratio", "reward", "reward_std", "relay/call_ratio"):
        assert together_metrics.get(name) == pytest.approx(alone_metrics.get(name), abs=2e-3)


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_a_rollout(small_pair: Any, tmp_path: Path) -> None:
    whole, _ = train(small_pair, 2, "grpo", tmp_path)
    assert len(whole["rollouts"]) == 2
    for step in (2, 3):
        (tmp_path / f"step={step}.ckpt").unlink()
    resumed, _ = train(small_pair, 2, "grpo", tmp_path)
    torch.testing.assert_close(resumed["state_dict"], whole["state_dict"], rtol=1e-6, atol=1e-7)
