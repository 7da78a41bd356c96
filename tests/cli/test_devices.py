"""Runs on several CPU processes through the command line."""

from __future__ import annotations

import re

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # each process imports everything
THREE = ("--trainer.accelerator", "cpu", "--trainer.devices", 3, "--trainer.strategy", "ddp")


def test_three_processes_train_and_end_with_one_run_folder(start, config, tmp_path):
    options = ("--data.prompts_per_rollout", 6, "--trainer.max_steps", 4, "--trainer.limit_val_batches", 1)
    run = start("fit", "--config", config, *THREE, *options)
    _, errors = run.communicate(timeout=800)
    assert run.returncode == 0, errors
    assert "sync_dist" not in errors
    checkpoint = torch.load(tmp_path / "runs" / "grpo" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert len(checkpoint["rollouts"]) == 3
    assert {state["rollout_index"] for state in checkpoint["rollouts"]} == {1}


def test_a_rollout_that_three_processes_cannot_share_is_refused_in_one_sentence(start, config):
    run = start("fit", "--config", config, *THREE, "--data.prompts_per_rollout", 4)
    _, errors = run.communicate(timeout=800)
    assert run.returncode == 2, errors
    assert "Traceback" not in errors
    sentence = r"error: prompts_per_rollout must be a positive multiple of the 3 processes, but is 4\."
    assert re.search(rf"^{sentence}$", errors, re.MULTILINE)
