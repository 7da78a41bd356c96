"""Group-relative advantages of rewards that are already known."""

from __future__ import annotations

import torch
from relay_kernels.checks import check_choice, check_group_size
from relay_kernels.relay_advantages import ADVANTAGE_ESTIMATORS, SCALE_REWARDS
from relay_kernels.relay_advantages.reference import group_advantages_reference


def group_advantages(
    rewards: torch.Tensor, group_size: int, scale_rewards: str = "group", advantage_estimator: str = "grpo"
) -> torch.Tensor:
    """Advantages [N] fp32 of rewards [N], the samples of a group consecutive; 0 where a group's rewards are equal.

    The formulas are those of the op `relay_advantages`, which computes rewards and advantages in one launch; this
    function serves rewards that something was added to. "batch" scales by the standard deviation of these N rewards.
    Raises ValueError naming the argument.
    """
    check_choice("scale_rewards", scale_rewards, SCALE_REWARDS)
    check_choice("advantage_estimator", advantage_estimator, ADVANTAGE_ESTIMATORS)
    if rewards.ndim != 1 or not rewards.is_floating_point():
        raise ValueError(f"rewards must be a floating-point vector; got {rewards.dtype} {list(rewards.shape)}.")
    check_group_size(group_size, rewards.shape[0])
    return group_advantages_reference(rewards.float().contiguous(), group_size, scale_rewards, advantage_estimator)
