"""`relay_advantages`: from judged samples to rewards and group-relative advantages. Maths: README.md."""

from __future__ import annotations

import math

import torch

from relay_kernels.backends import choose_backend
from relay_kernels.checks import check_choice, check_group_size, check_samples
from relay_kernels.relay_advantages.reference import relay_advantages_reference

REWARDS = ("difficulty_aware", "simple")
SCALE_REWARDS = ("group", "none", "batch")
ADVANTAGE_ESTIMATORS = ("grpo", "rloo")


def relay_advantages(
    is_correct: torch.Tensor,
    num_teacher_tokens: torch.Tensor,
    num_completion_tokens: torch.Tensor,
    num_calls: torch.Tensor,
    group_size: int,
    reward: str = "difficulty_aware",
    scale_rewards: str = "group",
    advantage_estimator: str = "grpo",
    bonus: float = 1.5,
    exploration: bool = True,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards and advantages of N samples, the G samples of a group consecutive: ([N] fp32, [N] fp32).

    `is_correct` is [N] bool (or 0/1 integers); `num_teacher_tokens` (delivered, not requested),
    `num_completion_tokens` and `num_calls` are [N] integers. `bonus` rewards a correct sample without a call in a
    group with one; `exploration` pays rho for a wrong sample that called in a group that nobody solved.
    Raises ValueError naming the argument for an unknown choice, a wrong shape, type or device, or N not divisible
    by `group_size`.
    """
    check_choice("reward", reward, REWARDS)
    check_choice("scale_rewards", scale_rewards, SCALE_REWARDS)
    check_choice("advantage_estimator", advantage_estimator, ADVANTAGE_ESTIMATORS)
    if is_correct.ndim != 1:
        raise ValueError(f"is_correct must have one dimension; got the shape {list(is_correct.shape)}.")
    num_samples = is_correct.shape[0]
    check_group_size(group_size, num_samples)
    device = is_correct.device
    check_samples("is_correct", is_correct, num_samples, device, allow_bool=True)
    check_samples("num_teacher_tokens", num_teacher_tokens, num_samples, device)
    check_samples("num_completion_tokens", num_completion_tokens, num_samples, device)
    check_samples("num_calls", num_calls, num_samples, device)
    if not math.isfinite(bonus):
        raise ValueError(f"bonus must be finite; got {bonus}.")
    if choose_backend("relay_advantages", backend, device) == "triton":
        from relay_kernels.relay_advantages.triton_impl import relay_advantages_triton as implementation
    else:
        implementation = relay_advantages_reference
    return implementation(
        is_correct,
        num_teacher_tokens,
        num_completion_tokens,
        num_calls,
        group_size,
        reward,
        scale_rewards,
        advantage_estimator,
        bonus,
        exploration,
    )
