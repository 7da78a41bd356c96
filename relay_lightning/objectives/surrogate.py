"""Policy-gradient losses per token. Legend: B rows, T tokens; `advantages` is [B, 1], everything else [B, T]."""

from __future__ import annotations

import torch

SHAPING_GAMMA = 0.1
"""The gamma of LUFFY's policy shaping (arXiv 2504.14945, section 3)."""


def clipped_surrogate(
    ratio: torch.Tensor, advantages: torch.Tensor, epsilon: float, epsilon_high: float, delta: float | None
) -> torch.Tensor:
    """-min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A).

    `delta` bounds the first r from above: two-sided clipping, which only a negative advantage feels and which equals
    the dual clip of PPO when delta > 1 + epsilon_high.
    """
    clipped = ratio.clamp(1.0 - epsilon, 1.0 + epsilon_high)
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    return -torch.minimum(bounded * advantages, clipped * advantages)


def cispo_surrogate(
    policy_log_probs: torch.Tensor, ratio: torch.Tensor, advantages: torch.Tensor, ratio_max: float
) -> torch.Tensor:
    """-sg[min(r, ratio_max)] A log pi (MiniMax-M1, arXiv 2506.13585): every token keeps a gradient."""
    return -ratio.detach().clamp(max=ratio_max) * advantages * policy_log_probs


def shaped_imitation(policy_log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """-f(p) A with f(p) = p / (p + 0.1), p the student's own probability of the teacher's token (LUFFY).

    No ratio and no clip: the student never sampled the token. f gives most gradient to tokens it finds unlikely.
    """
    probability = policy_log_probs.exp()
    return -probability / (probability + SHAPING_GAMMA) * advantages
