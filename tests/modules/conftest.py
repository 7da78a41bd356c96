"""How the module tests train: the small pair, minute rollouts, one CPU process, nothing on the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.modules.grpo import GRPOModule

pytest.register_assert_rewrite("training_processes")


@pytest.fixture
def make_module(small_pair: Any) -> Callable[..., GRPOModule]:
    def make(**options: Any) -> GRPOModule:
        settings = {
            "student": small_pair.student,
            "teacher": small_pair.teacher,
            "group_size": 4,
            "max_completion_tokens": 28,
            "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        }
        return GRPOModule(**(settings | options))

    return make


@pytest.fixture
def make_data(small_pair: Any) -> Callable[..., PromptDataModule]:
    def make(**options: Any) -> PromptDataModule:
        source = dict.fromkeys(("train", "val", "test"), small_pair.problems)
        return PromptDataModule(**(source | {"prompts_per_rollout": 4} | options))

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer that, with `saves`, keeps the checkpoint of every optimiser step as step=<n>.ckpt in that folder."""

    def make(max_steps: int, *, saves: Path | None = None, **options: Any) -> Trainer:
        callbacks = options.pop("callbacks", [])
        if saves is not None:
            every_step = ModelCheckpoint(saves, filename="{step}", every_n_train_steps=1, save_top_k=-1)
            callbacks = [*callbacks, every_step]
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        settings = (
            quiet
            | {"accelerator": "cpu", "log_every_n_steps": 1, "limit_val_batches": 0, "default_root_dir": tmp_path}
            | options
        )
        return Trainer(max_steps=max_steps, callbacks=callbacks, enable_checkpointing=saves is not None, **settings)

    return make
