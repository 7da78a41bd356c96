"""The GRPO family: one loss from log-probabilities, with the names of TRL. Legend: B rows, T tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from relay_kernels.checks import check_choice

from relay_lightning.objectives.aggregation import LOSS_TYPES, LossType, aggregate
from relay_lightning.objectives.kl import KL_ESTIMATORS, KLEstimator, kl_per_token
from relay_lightning.objectives.metrics import clip_metrics, extremes, masked_mean, sampling_metrics
from relay_lightning.objectives.ratio import (
    IMPORTANCE_SAMPLING_LEVELS,
    ROLLOUT_IS_MODES,
    ImportanceSamplingLevel,
    RolloutISMode,
    importance_ratio,
    rollout_correction,
)
from relay_lightning.objectives.surrogate import cispo_surrogate, clipped_surrogate, shaped_imitation
from relay_lightning.types import TokenSource, TrainBatch

TeacherTokens = Literal["mask", "on_policy", "luffy"]
TEACHER_TOKENS = ("mask", "on_policy", "luffy")


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss to call `backward` on, and what to log beside it."""

    loss: torch.Tensor
    """[] fp32: the loss, scaled as docs/numerics.md says; its mean over the step's micro-batches is the step's loss."""
    metrics: dict[str, torch.Tensor]
    """Detached scalars under TRL's names: means over tokens of this micro-batch unless the name says max or min."""
    num_tokens: dict[str, torch.Tensor]
    """[] fp32 for each metric: the tokens that it is over, its weight beside other micro-batches."""


def grpo_loss(
    policy_log_probs: torch.Tensor,
    batch: TrainBatch,
    *,
    loss_type: LossType = "dapo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    importance_sampling_level: ImportanceSamplingLevel = "token",
    rollout_is_mode: RolloutISMode = "none",
    rollout_is_clip_max: float = 3.0,
    teacher_tokens: TeacherTokens = "mask",
    max_completion_tokens: int | None = None,
    num_micro_batches: int = 1,
    entropy: torch.Tensor | None = None,
) -> LossOutput:
    """The loss of a micro-batch; formulas and normalisers in docs/numerics.md.

    `policy_log_probs` [B, T] are the policy's at the sampling temperature; values outside `batch.loss_mask` never
    matter. `epsilon_high` None means `epsilon`; for cispo it is the largest ratio itself (5.0, say). `teacher_tokens`:
    "mask" trains on student tokens only, "on_policy" treats the teacher's like the student's, "luffy" shapes them.
    `num_micro_batches` = accumulate_grad_batches * world size. `entropy` [B, T] is only logged.
    Raises ValueError naming the argument or the field of the batch that is wrong or missing.
    """
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    check_choice("kl_estimator", kl_estimator, KL_ESTIMATORS)
    check_choice("importance_sampling_level", importance_sampling_level, IMPORTANCE_SAMPLING_LEVELS)
    _check_clipping(loss_type, epsilon, epsilon_high, delta, rollout_is_clip_max)
    _check_batch(policy_log_probs, batch, beta, rollout_is_mode)
    if num_micro_batches < 1:
        raise ValueError(f"num_micro_batches must be at least 1; got {num_micro_batches}.")

    loss_mask, student_mask, ratio_mask = _masks(batch, teacher_tokens)
    log_probs = torch.where(loss_mask, policy_log_probs, 0.0)
    log_probs = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    old_log_probs = _old_log_probs(log_probs, batch, student_mask)
    advantages = batch.advantages.unsqueeze(1)  # [B, 1]

    ratio = importance_ratio(log_probs, old_log_probs, ratio_mask, importance_sampling_level)
    if loss_type == "cispo":
        per_token_loss = cispo_surrogate(log_probs, ratio, advantages, epsilon_high)
    else:
        per_token_loss = clipped_surrogate(ratio, advantages, epsilon, epsilon_high, delta)
    weights = rollout_correction(
        old_log_probs, batch.rollout_log_probs, student_mask, rollout_is_mode, rollout_is_clip_max
    )
    per_token_loss = per_token_loss * weights
    if teacher_tokens == "luffy":
        per_token_loss = torch.where(student_mask, per_token_loss, shaped_imitation(log_probs, advantages))

    metrics = clip_metrics(ratio, advantages, ratio_mask, loss_type, epsilon, epsilon_high)
    num_tokens = dict.fromkeys(metrics, ratio_mask.sum().float())
    metrics |= sampling_metrics(log_probs, batch.old_log_probs, batch.rollout_log_probs, student_mask)
    if rollout_is_mode != "none":
        metrics |= extremes("sampling/importance_sampling_ratio", weights, student_mask)
    num_tokens = dict.fromkeys(metrics, student_mask.sum().float()) | num_tokens
    if entropy is not None:
        metrics["entropy"] = masked_mean(entropy, loss_mask)
    if batch.reference_log_probs is not None:
        kl = kl_per_token(log_probs, batch.reference_log_probs, kl_estimator)
        metrics["kl"] = masked_mean(kl, loss_mask)
        per_token_loss = per_token_loss + beta * kl if beta > 0.0 else per_token_loss

    loss = aggregate(
        per_token_loss,
        loss_mask,
        loss_type,
        num_step_loss_tokens=batch.num_step_loss_tokens,
        num_step_rollouts=batch.num_step_rollouts,
        max_completion_tokens=max_completion_tokens,
        num_micro_batches=num_micro_batches,
    )
    num_tokens = dict.fromkeys(metrics, loss_mask.sum().float()) | num_tokens
    return LossOutput(loss, metrics, num_tokens)


def _masks(batch: TrainBatch, teacher_tokens: TeacherTokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, T] bool each: tokens with a loss, the student's among them, and those whose loss has an importance ratio."""
    check_choice("teacher_tokens", teacher_tokens, TEACHER_TOKENS)
    is_student = batch.token_source == TokenSource.STUDENT
    student_mask = batch.loss_mask & is_student
    loss_mask = student_mask if teacher_tokens == "mask" else batch.loss_mask
    return loss_mask, student_mask, loss_mask if teacher_tokens == "on_policy" else student_mask


def _old_log_probs(log_probs: torch.Tensor, batch: TrainBatch, student_mask: torch.Tensor) -> torch.Tensor:
    """What the ratio divides by, [B, T]; without `old_log_probs` the ratio of a teacher's token is 1."""
    if batch.old_log_probs is not None:
        return batch.old_log_probs
    return torch.where(student_mask, batch.rollout_log_probs, log_probs.detach())


def _check_clipping(
    loss_type: str, epsilon: float, epsilon_high: float, delta: float | None, rollout_is_clip_max: float
) -> None:
    check_choice("loss_type", loss_type, LOSS_TYPES)
    if rollout_is_clip_max < 1.0:
        raise ValueError(f"rollout_is_clip_max must be at least 1, the weight of a match; got {rollout_is_clip_max}.")
    if loss_type == "cispo":
        if epsilon_high < 1.0:
            raise ValueError(f"epsilon_high is the largest ratio of loss_type 'cispo', at least 1; got {epsilon_high}.")
        return
    if not 0.0 <= epsilon < 1.0 or epsilon_high < 0.0:
        raise ValueError(f"epsilon must be in [0, 1) and epsilon_high at least 0; got {epsilon} and {epsilon_high}.")
    if delta is not None and delta <= 1.0 + epsilon_high:
        raise ValueError(f"delta must exceed 1 + epsilon_high = {1.0 + epsilon_high}; got {delta}.")


def _check_batch(policy_log_probs: torch.Tensor, batch: TrainBatch, beta: float, rollout_is_mode: str) -> None:
    check_choice("rollout_is_mode", rollout_is_mode, ROLLOUT_IS_MODES)
    if policy_log_probs.shape != batch.loss_mask.shape:
        raise ValueError(
            f"policy_log_probs must have the shape of loss_mask {list(batch.loss_mask.shape)}; "
            f"got {list(policy_log_probs.shape)}."
        )
    if beta < 0.0:
        raise ValueError(f"beta must not be negative; got {beta}.")
    if beta > 0.0 and batch.reference_log_probs is None:
        raise ValueError(f"reference_log_probs of the batch are needed by beta {beta}; got None.")
    if rollout_is_mode != "none" and batch.old_log_probs is None:
        raise ValueError(
            f"old_log_probs of the batch are needed by rollout_is_mode {rollout_is_mode!r}, which compares them with "
            "rollout_log_probs; got None."
        )
