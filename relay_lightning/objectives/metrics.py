"""What is logged beside the loss, under TRL's names. Legend: B rows, T tokens; values and masks are [B, T]."""

from __future__ import annotations

import torch

from relay_lightning.objectives.aggregation import LossType


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The detached mean of values [B, T] over mask, 0 when the mask is empty."""
    return torch.where(mask, values.detach(), 0.0).sum() / mask.sum().clamp(min=1)


def clip_metrics(
    ratio: torch.Tensor,
    advantages: torch.Tensor,
    ratio_mask: torch.Tensor,
    loss_type: LossType,
    epsilon: float,
    epsilon_high: float,
) -> dict[str, torch.Tensor]:
    """Shares of the tokens with a ratio whose ratio the clip holds back."""
    if loss_type == "cispo":
        return {"cispo_clip_ratio": masked_mean(((ratio > epsilon_high) & (advantages > 0)).float(), ratio_mask)}
    is_low = (ratio < 1.0 - epsilon) & (advantages < 0)
    is_high = (ratio > 1.0 + epsilon_high) & (advantages > 0)
    return {
        "clip_ratio/low_mean": masked_mean(is_low.float(), ratio_mask),
        "clip_ratio/high_mean": masked_mean(is_high.float(), ratio_mask),
        "clip_ratio/region_mean": masked_mean((is_low | is_high).float(), ratio_mask),
    }


def sampling_metrics(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor | None,
    rollout_log_probs: torch.Tensor,
    student_mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """How far the trainer's log-probabilities of the student's tokens lie from the rollout's, in nats.

    The trainer's are `old_log_probs`, or without them the present ones, which also contain the updates since.
    """
    own_log_probs = log_probs.detach() if old_log_probs is None else old_log_probs
    difference = torch.where(student_mask, (own_log_probs - rollout_log_probs).abs(), 0.0)
    return {
        "sampling/sampling_logp_difference/mean": masked_mean(difference, student_mask),
        "sampling/sampling_logp_difference/max": difference.amax(),
    }


def extremes(name: str, values: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean, largest and smallest of values [B, T] over mask; 0 when the mask is empty."""
    largest = torch.where(mask, values, -torch.inf).amax()
    smallest = torch.where(mask, values, torch.inf).amin()
    is_empty = ~mask.any()
    return {
        f"{name}/mean": masked_mean(values, mask),
        f"{name}/max": largest.masked_fill(is_empty, 0.0),
        f"{name}/min": smallest.masked_fill(is_empty, 0.0),
    }
