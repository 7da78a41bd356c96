"""Trains the small pair on as many CPU processes as asked for; run by test_ddp.py as a program of its own.

Arguments: folder of the pair, JSONL of problems, number of processes, module ("grpo" or "warmup"), folder for the
checkpoints.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.sft import WarmupDataModule
from relay_lightning.modules.grpo import GRPOModule
from relay_lightning.modules.warmup import WarmupModule


def main(student: str, teacher: str, problems: str, num_processes: str, stage: str, saves: str) -> None:
    """Three optimiser steps, the last in the middle of a rollout; SGD shows the gradients as they are."""
    torch.set_num_threads(1)
    pair: dict[str, Any] = {"student": student, "teacher": teacher, "max_completion_tokens": 28}
    pair["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    source = {"train": problems, "val": problems, "test": problems}
    if stage == "grpo":
        module: Any = GRPOModule(group_size=4, scale_rewards="batch", **pair)
        data: Any = PromptDataModule(prompts_per_rollout=4, steps_per_rollout=2, **source)
    else:
        module = WarmupModule(samples_per_prompt=2, cache_dir=f"{saves}/cache", **pair)
        data = WarmupDataModule(batch_size=4, **source)
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=int(num_processes),
        strategy="ddp" if int(num_processes) > 1 else "auto",
        accumulate_grad_batches=2,
        callbacks=[ModelCheckpoint(saves, filename="{step}", every_n_train_steps=1, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=saves,
        check_val_every_n_epoch=None,
        val_check_interval=4,
    )
    last = Path(saves) / "step=1.ckpt"
    trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
    if trainer.is_global_zero:
        print("metrics", {name: round(float(value), 4) for name, value in sorted(trainer.callback_metrics.items())})


if __name__ == "__main__":
    main(*sys.argv[1:])
