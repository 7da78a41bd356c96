"""A plain PyTorch loop that trains a causal language model on (prompt, completion) token pairs.

Legend: B rows, T tokens of the longest row, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

_IGNORED = -100
_POOL_BATCHES = 16  # batches drawn together and sorted by length, so that little of a batch is padding
_REPORT_INTERVAL_S = 20.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with the completion to learn."""

    prompt_token_ids: list[int]
    completion_token_ids: list[int]
    unlearnt: frozenset[int] = field(default_factory=frozenset)
    """Positions in the completion that are read but not learnt."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Optimiser settings: linear warm-up to `peak_lr`, then a cosine to zero at `num_steps`."""

    num_steps: int
    batch_size: int
    peak_lr: float
    num_warmup_steps: int = 100
    weight_decay: float = 0.05
    has_bf16: bool = False
    """Whether matrix products run in bfloat16; weights, gradients and optimiser stay fp32."""

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.num_warmup_steps:
            return self.peak_lr * (step + 1) / self.num_warmup_steps
        progress = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        return self.peak_lr * 0.5 * (1.0 + math.cos(math.pi * progress))


def train(
    model: nn.Module, draw_samples: Callable[[int], list[Sample]], schedule: Schedule, seed: int, label: str
) -> None:
    """Trains `model` in place on samples from `draw_samples(count)`, printing its loss under `label`.

    The loss is the mean cross-entropy of the completion tokens; prompt tokens are context only.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(_parameter_groups(model, schedule), lr=0.0, betas=(0.9, 0.98), fused=True)
    batches: list[tuple[Tensor, Tensor]] = []
    started_s = reported_s = time.monotonic()
    model.train()
    for step in range(schedule.num_steps):
        if not batches:
            batches = _draw_batches(draw_samples, schedule.batch_size, generator)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step)
        # One context a step: autocast keeps its bf16 copies of the weights until it is left, so one around the whole
        # loop would go on computing with the weights of the first step.
        with torch.autocast("cpu", torch.bfloat16, enabled=schedule.has_bf16):
            loss = _completion_loss(model, *batches.pop())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        is_last = step + 1 == schedule.num_steps
        if is_last or time.monotonic() - reported_s > _REPORT_INTERVAL_S:
            reported_s = time.monotonic()
            elapsed_s = reported_s - started_s
            print(f"{label}: step {step + 1}/{schedule.num_steps} loss {loss.item():.4f} {elapsed_s:.0f} s", flush=True)
    model.eval()


def _parameter_groups(model: nn.Module, schedule: Schedule) -> list[dict[str, object]]:
    """Matrices with weight decay, norms without."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    return [
        {"params": matrices, "weight_decay": schedule.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _draw_batches(
    draw_samples: Callable[[int], list[Sample]], batch_size: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """A pool of samples cut into batches of similar length, in random order."""
    pool = draw_samples(batch_size * _POOL_BATCHES)
    pool.sort(key=lambda sample: len(sample.prompt_token_ids) + len(sample.completion_token_ids))
    batches = [_collate(pool[start : start + batch_size]) for start in range(0, len(pool), batch_size)]
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[index] for index in order]


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Right-padded token ids and labels, both int64 [B, T]; the label of a prompt or padding token is ignored.

    With a causal mask a token sees only what stands before it, so padding on the right needs no attention mask.
    """
    num_tokens = max(len(sample.prompt_token_ids) + len(sample.completion_token_ids) for sample in samples)
    token_ids = torch.zeros(len(samples), num_tokens, dtype=torch.int64)
    labels = torch.full_like(token_ids, _IGNORED)
    for row, sample in enumerate(samples):
        start = len(sample.prompt_token_ids)
        stop = start + len(sample.completion_token_ids)
        token_ids[row, :stop] = torch.tensor(sample.prompt_token_ids + sample.completion_token_ids)
        labels[row, start:stop] = token_ids[row, start:stop]
        labels[row, [start + position for position in sample.unlearnt]] = _IGNORED
    return token_ids, labels


def _completion_loss(model: nn.Module, token_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the labelled tokens, each predicted from those before it."""
    logits = model(input_ids=token_ids, use_cache=False).logits  # [B, T, V]
    return functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=_IGNORED
    )
