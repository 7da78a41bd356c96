"""Importance ratios. Legend: B rows, T tokens; masks are bool, log-probabilities natural."""

from __future__ import annotations

from typing import Literal

import torch

ImportanceSamplingLevel = Literal["token", "sequence"]
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence")

RolloutISMode = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
ROLLOUT_IS_MODES = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")

MAX_LOG_RATIO = 20.0
"""A ratio beyond e^20 says only that the two policies disagree; clamped here, it cannot overflow fp32."""


def importance_ratio(
    policy_log_probs: torch.Tensor, old_log_probs: torch.Tensor, mask: torch.Tensor, level: ImportanceSamplingLevel
) -> torch.Tensor:
    """pi / pi_old, [B, T], and 1 outside `mask`.

    "token": r_t of every token. "sequence" (GSPO, arXiv 2507.18071): s = exp(mean over the row's masked tokens of
    log r_t), the same for all tokens of a row.
    """
    log_ratio = torch.where(mask, policy_log_probs - old_log_probs, 0.0)
    if level == "sequence":
        mean = log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio = torch.where(mask, mean, 0.0)
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def rollout_correction(
    old_log_probs: torch.Tensor,
    rollout_log_probs: torch.Tensor,
    student_mask: torch.Tensor,
    mode: RolloutISMode,
    clip_max: float,
) -> torch.Tensor:
    """Weights [B, T] for the mismatch of trainer and rollout engine: w = pi_old / pi_rollout, 1 outside `student_mask`.

    token_*: w of every token; sequence_*: the product over the row's student tokens, for all of them.
    *_truncate: min(w, clip_max); *_mask: w where w <= clip_max, else 0. No gradient flows through.
    """
    if mode == "none":
        return torch.ones_like(old_log_probs)
    log_weight = torch.where(student_mask, (old_log_probs - rollout_log_probs).detach(), 0.0)
    if mode.startswith("sequence"):
        log_weight = torch.where(student_mask, log_weight.sum(dim=1, keepdim=True), 0.0)
    weight = log_weight.clamp(max=MAX_LOG_RATIO).exp()
    if mode.endswith("truncate"):
        return torch.where(student_mask, weight.clamp(max=clip_max), 1.0)
    return weight.masked_fill(student_mask & (weight > clip_max), 0.0)
