"""From judged rollouts to training tensors. Legend: B rows, T tokens of the longest row of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from relay_lightning.types import FinishReason, Prompt, Rollout, RolloutGroup, TokenSource, TrainBatch

TeacherTokens = Literal["mask", "on_policy", "luffy"]

PAD_TOKEN_ID = 0
"""Any valid id will do: padding stands on the right of a causal model and no mask includes it."""


def make_train_batches(
    groups: Sequence[RolloutGroup],
    *,
    num_steps: int = 1,
    micro_batches_per_step: int = 1,
    teacher_tokens: TeacherTokens = "mask",
    mask_truncated_completions: bool = False,
) -> list[TrainBatch]:
    """The rollouts as `num_steps * micro_batches_per_step` micro-batches, in the order they are trained on.

    Each optimiser step takes an equal run of consecutive rollouts. Within a step the rows are sorted by length, so
    that little of a micro-batch is padding. `num_step_*` count this process alone. The loss mask covers the student's
    tokens and, unless `teacher_tokens` is "mask", the teacher's; it leaves out completions that a teacher's failure
    broke off and, with `mask_truncated_completions`, those that ran out of tokens.
    Raises ValueError when the rollouts cannot be divided so.
    """
    rows = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    require_whole_micro_batches(len(rows), num_steps, micro_batches_per_step)
    rows_per_step = len(rows) // num_steps
    batches: list[TrainBatch] = []
    for start in range(0, len(rows), rows_per_step):
        step_rows = sorted(rows[start : start + rows_per_step], key=_num_tokens)
        size = rows_per_step // micro_batches_per_step
        step = [
            _stack(step_rows[first : first + size], teacher_tokens, mask_truncated_completions)
            for first in range(0, rows_per_step, size)
        ]
        num_loss_tokens = torch.stack([batch.num_step_loss_tokens for batch in step]).sum()
        num_rollouts = torch.tensor(float(rows_per_step))
        batches += [
            replace(batch, num_step_loss_tokens=num_loss_tokens, num_step_rollouts=num_rollouts) for batch in step
        ]
    return batches


def require_whole_micro_batches(num_completions: int, num_steps: int, micro_batches_per_step: int) -> None:
    """Raises ValueError unless the completions of one process's rollout divide into micro-batches of one size."""
    if not num_completions or num_completions % (num_steps * micro_batches_per_step):
        raise ValueError(
            f"{num_completions} completions of a rollout cannot be divided into {num_steps} optimiser steps "
            f"(steps_per_rollout) of {micro_batches_per_step} micro-batches (trainer.accumulate_grad_batches)."
        )


def _num_tokens(row: tuple[Prompt, Rollout]) -> int:
    prompt, rollout = row
    return len(prompt.token_ids) + rollout.completion.num_tokens


def _stack(
    rows: Sequence[tuple[Prompt, Rollout]], teacher_tokens: TeacherTokens, mask_truncated_completions: bool
) -> TrainBatch:
    """One micro-batch, right-padded; its `num_step_*` count this micro-batch alone."""
    num_rows, num_tokens = len(rows), max(map(_num_tokens, rows))
    token_ids = torch.full((num_rows, num_tokens), PAD_TOKEN_ID)
    attention_mask = torch.zeros(num_rows, num_tokens, dtype=torch.bool)
    token_source = torch.full((num_rows, num_tokens), TokenSource.PROMPT, dtype=torch.uint8)
    log_probs = torch.zeros(num_rows, num_tokens)
    for row, (prompt, rollout) in enumerate(rows):
        completion = rollout.completion
        start, stop = len(prompt.token_ids), _num_tokens((prompt, rollout))
        token_ids[row, :stop] = torch.tensor([*prompt.token_ids, *completion.token_ids])
        attention_mask[row, :stop] = True
        token_source[row, start:stop] = torch.tensor(completion.token_source, dtype=torch.uint8)
        log_probs[row, start:stop] = torch.tensor(completion.log_probs)
    is_student = token_source == TokenSource.STUDENT
    is_trained = is_student if teacher_tokens == "mask" else token_source != TokenSource.PROMPT
    has_signal = [_may_train_on(rollout, mask_truncated_completions) for _, rollout in rows]
    loss_mask = is_trained & torch.tensor(has_signal).unsqueeze(1)
    return TrainBatch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        loss_mask=loss_mask,
        token_source=token_source,
        advantages=torch.tensor([rollout.advantage for _, rollout in rows]),
        rollout_log_probs=torch.where(is_student, log_probs, 0.0),
        old_log_probs=None,
        reference_log_probs=None,
        num_step_loss_tokens=loss_mask.sum().float(),
        num_step_rollouts=torch.tensor(float(num_rows)),
    )


def _may_train_on(rollout: Rollout, mask_truncated_completions: bool) -> bool:
    finish_reason = rollout.completion.finish_reason
    if finish_reason == FinishReason.TEACHER_ERROR:
        return False
    return not (mask_truncated_completions and finish_reason == FinishReason.LENGTH)


def train_batches_to_plain(batches: Sequence[TrainBatch]) -> list[dict[str, Tensor | None]]:
    """The batches as dicts of tensors: what `torch.load(weights_only=True)` reads back."""
    return [{name: getattr(batch, name) for name in TrainBatch.__slots__} for batch in batches]


def train_batches_from_plain(plain: Sequence[dict[str, Tensor | None]]) -> list[TrainBatch]:
    """The inverse of `train_batches_to_plain`."""
    return [TrainBatch(**fields) for fields in plain]  # type: ignore[arg-type]
