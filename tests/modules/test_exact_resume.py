"""A run that was interrupted and resumed ends in the same weights as one that was not, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from relay_lightning.models.lora import LoRASettings

NUM_STEPS = 7
"""Rollouts of two steps, two rollouts in a pass over the data: this crosses every boundary there is."""

Run = Callable[..., None]


@pytest.fixture
def run(make_module: Any, make_data: Any, make_trainer: Any) -> Run:
    """Trains to NUM_STEPS, saving every step in `saves`, from the beginning or from a checkpoint."""

    def run(saves: Path, ckpt_path: Path | None = None, callbacks: Any = (), data: Any = None, **options: Any) -> None:
        trainer = make_trainer(NUM_STEPS, saves=saves, accumulate_grad_batches=2, callbacks=[*callbacks])
        data_module = make_data(steps_per_rollout=2, **(data or {}))
        trainer.fit(make_module(**options), data_module, ckpt_path=ckpt_path, weights_only=True)

    return run


def final_state(saves: Path) -> dict[str, Any]:
    """What must agree: weights, optimiser, the rollout in use, and where training stands."""
    checkpoint = torch.load(saves / f"step={NUM_STEPS}.ckpt", weights_only=True)
    assert checkpoint["global_step"] == NUM_STEPS
    (rollout,) = checkpoint["rollouts"]
    del rollout["metrics"]  # holds seconds
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "epoch")} | {"rollout": rollout}


def assert_equal(first: Any, second: Any) -> None:
    """Equality of nested plain values, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert first == second


def test_resumed_run_equals_uninterrupted_run_when_cut_after_any_step(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    expected = final_state(tmp_path / "whole")
    for step in range(1, NUM_STEPS):
        run(tmp_path / f"from-{step}", ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert_equal(final_state(tmp_path / f"from-{step}"), expected)


def test_training_changes_the_weights_at_every_step(run: Run, tmp_path: Path) -> None:
    """The premise of the test above: equal weights would prove nothing if training did nothing."""
    run(tmp_path)
    states = [torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"] for step in (1, 2, 3, 4)]
    for before, after in pairwise(states):
        assert any(not torch.equal(before[name], after[name]) for name in before)


class Crash(Callback):
    """Raises in the middle of a batch, after the backward pass and before the optimiser's step."""

    def __init__(self, batch_number: int) -> None:
        self.num_batches_left = batch_number

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.num_batches_left -= 1
        if self.num_batches_left == 0:
            raise KeyError("a crash in the middle of a batch")


@pytest.mark.parametrize("batch_number", [6, 7])
def test_resumed_run_equals_uninterrupted_run_when_it_crashed_in_a_batch(
    run: Run, tmp_path: Path, batch_number: int
) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyError, match="middle of a batch"):
        run(tmp_path / "cut", callbacks=[Crash(batch_number)])
    run(tmp_path / "resumed", ckpt_path=tmp_path / "cut" / f"step={(batch_number - 1) // 2}.ckpt")
    assert_equal(final_state(tmp_path / "resumed"), final_state(tmp_path / "whole"))


@pytest.mark.parametrize(
    "options",
    [
        {"lora": LoRASettings(rank=2, dropout=0.2), "beta": 0.1},
        {"beta": 0.1, "old_log_probs": "recompute", "rollout_is_mode": "token_truncate"},
        {"dynamic_sampling": 2, "teacher_tokens": "luffy"},
    ],
    ids=["lora-dropout-kl", "full-kl-recompute", "dynamic-luffy"],
)
def test_resumed_run_equals_uninterrupted_run_under_options_with_state_of_their_own(
    run: Run, tmp_path: Path, options: dict[str, Any]
) -> None:
    run(tmp_path / "whole", **options)
    run(tmp_path / "resumed", ckpt_path=tmp_path / "whole" / "step=3.ckpt", **options)
    assert_equal(final_state(tmp_path / "resumed"), final_state(tmp_path / "whole"))


def test_a_checkpoint_is_refused_when_the_data_changed(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"data\.seed was 0 and is 1"):
        run(tmp_path / "other", ckpt_path=tmp_path / "whole" / "step=2.ckpt", data={"seed": 1})
