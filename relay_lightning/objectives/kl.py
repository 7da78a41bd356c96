"""Estimators of KL(policy || reference) from the policy's own samples (Schulman, "Approximating KL divergence")."""

from __future__ import annotations

from typing import Literal

import torch

from relay_lightning.objectives.ratio import MAX_LOG_RATIO

KLEstimator = Literal["k1", "k2", "k3"]
KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_per_token(
    policy_log_probs: torch.Tensor, reference_log_probs: torch.Tensor, kl_estimator: KLEstimator
) -> torch.Tensor:
    """The estimate of every token, same shape. With d = log ref - log pi:

    k1 = -d: unbiased, but its gradient is that of log pi alone, whose mean is zero: a measure, not a penalty.
    k2 = d^2 / 2: low variance, and its gradient is the KL's own on the policy's samples.
    k3 = e^d - d - 1: unbiased and never negative; the penalty of GRPO.
    """
    difference = reference_log_probs - policy_log_probs
    if kl_estimator == "k1":
        return -difference
    if kl_estimator == "k2":
        return 0.5 * difference.square()
    return difference.clamp(max=MAX_LOG_RATIO).exp() - difference - 1.0
