"""Throughput: completion tokens and samples per second of training, decoding included."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from relay_lightning.types import RolloutGroup


class Throughput(Callback):
    """Logs `throughput/tokens_per_s` and `throughput/samples_per_s` of all processes with every new rollout.

    Both divide a rollout by the wall clock from the rollout before it to this one: one round of decoding, judging and
    updating. Every step on a rollout logs its figures.
    """

    def __init__(self) -> None:
        self._groups: list[RolloutGroup] | None = None
        self._last_s = 0.0
        self._figures: dict[str, float] = {}

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"figures": self._figures}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._figures = state_dict["figures"]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._groups, self._last_s = pl_module.last_groups, time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.last_groups is not self._groups:
            self._figures = self._measure(pl_module)
        pl_module.log_dict(self._figures)

    def _measure(self, pl_module: LightningModule) -> dict[str, float]:
        groups = pl_module.last_groups
        now_s = time.perf_counter()
        elapsed_s, self._groups, self._last_s = now_s - self._last_s, groups, now_s
        completions = [rollout.completion for group in groups for rollout in group.rollouts]
        own = torch.tensor([sum(completion.num_tokens for completion in completions), len(completions)])
        num_tokens, num_samples = pl_module.sum_over_ranks(own).tolist()
        return {"throughput/tokens_per_s": num_tokens / elapsed_s, "throughput/samples_per_s": num_samples / elapsed_s}
