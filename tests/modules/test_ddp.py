"""Several processes train as one does on the same global batch: only the order of sums differs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from training_processes import Training, compare, final_checkpoint, train, train_all

EVERYTHING = {"prompts_per_rollout": 8, "steps_per_rollout": 2}
"""All problems in a rollout, whole groups in every step of each of up to 4 processes."""


def test_two_processes_take_the_steps_of_one(small_pair: Any, tmp_path: Path) -> None:
    options = {"scale_rewards": "batch", "beta": 0.1}
    compare([Training(small_pair, tmp_path, module=options, data=EVERYTHING, max_steps=2)], 2)


@pytest.mark.slow
def test_three_processes_take_the_steps_of_one(small_pair: Any, tmp_path: Path) -> None:
    """An odd number: shares and sums of powers of two would hide a wrong one."""
    data = {"prompts_per_rollout": 6, "steps_per_rollout": 2}
    options = {"scale_rewards": "batch", "beta": 0.1}
    compare([Training(small_pair, tmp_path, module=options, data=data, accumulate=2, max_steps=4)], 3)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_take_the_steps_of_one_whatever_the_loss(small_pair: Any, tmp_path: Path, num_processes: int) -> None:
    """bnpo is not here: it averages over each micro-batch's own tokens, so it depends on how a batch is divided."""
    trainings = [
        Training(
            small_pair,
            tmp_path / f"{loss_type}-{scale_rewards}",
            module={"loss_type": loss_type, "scale_rewards": scale_rewards, "epsilon_high": 5.0, "delta": None},
            data=EVERYTHING,
        )
        for loss_type, scale_rewards in product(("dapo", "grpo", "dr_grpo", "cispo"), ("group", "batch"))
    ]
    compare(trainings, num_processes)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_processes_take_the_steps_of_one_whatever_the_options(
    small_pair: Any, tmp_path: Path, num_processes: int
) -> None:
    variants: dict[str, dict[str, Any]] = {
        "accumulated": {"data": {"prompts_per_rollout": 8}, "accumulate": 2},
        "dynamic": {"data": {"prompts_per_rollout": 4}, "module": {"dynamic_sampling": 2}},
        "luffy": {"data": EVERYTHING, "module": {"teacher_tokens": "luffy"}},
        "recomputed": {
            "data": EVERYTHING,
            "module": {"old_log_probs": "recompute", "rollout_is_mode": "token_truncate", "overlong_buffer": 8},
        },
        "warm-up": {"stage": "warmup", "data": {"batch_size": 8}, "accumulate": 2},
        "validated": {"trainer": {"limit_val_batches": 1.0, "val_check_interval": 1}, "data": {"eval_batch_size": 3}},
    }
    compare([Training(small_pair, tmp_path / name, **options) for name, options in variants.items()], num_processes)


def test_the_samples_are_of_uneven_length(small_pair: Any, tmp_path: Path) -> None:
    """The premise of the tests above: with equal lengths, wrong normalisers would go unseen."""
    (seen,) = train(Training(small_pair, tmp_path, data=EVERYTHING, max_steps=1))
    assert len({len(token_ids) for _, _, token_ids in seen.samples}) > 5


@pytest.mark.slow
def test_two_processes_resume_in_the_middle_of_a_rollout(small_pair: Any, tmp_path: Path) -> None:
    """The rollout in use of each process is in the checkpoint."""
    whole = Training(
        small_pair, tmp_path / "whole", data={"steps_per_rollout": 2}, accumulate=2, max_steps=4, module={"beta": 0.1}
    )
    resumed = [
        replace(whole, folder=tmp_path / f"from-{step}", resume_from=whole.folder / f"step={step}.ckpt")
        for step in (1, 2, 3)
    ]
    train_all([whole, *resumed], 2)
    expected = final_checkpoint(whole)
    assert [state["rollout_index"] for state in expected["rollouts"]] == [1, 1]
    for training in resumed:
        checkpoint = final_checkpoint(training)
        for name, weight in expected["state_dict"].items():
            assert torch.equal(checkpoint["state_dict"][name], weight)
