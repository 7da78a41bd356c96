"""Rewards and advantages of the relay in plain PyTorch: the definition that every faster backend is held to.

Shapes: N samples, P = N / G groups of G consecutive samples. Everything is computed in fp32.
"""

from __future__ import annotations

import torch

STUDENT_SOLVABLE, TEACHER_DEPENDENT, TEACHER_UNSOLVABLE = 0, 1, 2
"""Codes of a group's case, in the order of `relay_lightning.types.RewardCase`."""

STD_EPSILON = 1e-4
"""Keeps the division by a small standard deviation finite; the value that TRL uses."""


def group_cases_reference(is_correct: torch.Tensor, has_call: torch.Tensor, group_size: int) -> torch.Tensor:
    """The case code of every group: [N] bool, [N] bool -> [P] int64."""
    grouped_correct = is_correct.view(-1, group_size)
    solved_alone = (grouped_correct & ~has_call.view(-1, group_size)).any(dim=1)  # [P]
    solved = grouped_correct.any(dim=1)  # [P]
    unsolved_code = torch.where(solved, TEACHER_DEPENDENT, TEACHER_UNSOLVABLE)
    return torch.where(solved_alone, STUDENT_SOLVABLE, unsolved_code)


def call_ratios_reference(num_teacher_tokens: torch.Tensor, num_completion_tokens: torch.Tensor) -> torch.Tensor:
    """rho = teacher tokens delivered / completion tokens, [N] fp32; 0 for an empty completion."""
    return num_teacher_tokens.float() / num_completion_tokens.float().clamp(min=1.0)


def simple_rewards_reference(is_correct: torch.Tensor, call_ratios: torch.Tensor) -> torch.Tensor:
    """1[correct] - rho, [N] fp32."""
    return is_correct.float() - call_ratios


def difficulty_aware_rewards_reference(
    is_correct: torch.Tensor,
    has_call: torch.Tensor,
    call_ratios: torch.Tensor,
    group_size: int,
    bonus: float,
    exploration: bool,
) -> torch.Tensor:
    """The reward table of the relay paper (arXiv 2601.05167, section 3.3), its row chosen per group: [N] fp32.

    | case of the group  | no call, correct | called, correct | no call, wrong | called, wrong            |
    |--------------------|------------------|-----------------|----------------|--------------------------|
    | student-solvable   | bonus            | 1 - rho         | 0              | 0                        |
    | teacher-dependent  | -                | 1 - rho         | -1             | 0                        |
    | teacher-unsolvable | -                | -               | 0              | rho (0 if no exploration) |
    """
    case = group_cases_reference(is_correct, has_call, group_size).repeat_interleave(group_size)  # [N]
    zero = torch.zeros_like(call_ratios)
    correct_reward = torch.where(has_call, 1.0 - call_ratios, bonus)
    silent_wrong = torch.where(case == TEACHER_DEPENDENT, -1.0, zero)
    called_wrong = torch.where(case == TEACHER_UNSOLVABLE, call_ratios, zero) if exploration else zero
    return torch.where(is_correct, correct_reward, torch.where(has_call, called_wrong, silent_wrong))


def group_advantages_reference(
    rewards: torch.Tensor, group_size: int, scale_rewards: str, advantage_estimator: str
) -> torch.Tensor:
    """Advantages of [N] fp32 rewards; exactly 0 in a group whose rewards are all equal.

    grpo: (r - mean_g) / s with s = std_g + eps (`group`), std_batch + eps (`batch`) or 1 (`none`); std is unbiased.
    rloo: r - mean of the other G - 1 rewards; it has no scale.
    """
    if rewards.numel() == 0:
        return rewards
    grouped = rewards.view(-1, group_size)  # [P, G]
    mean = grouped.mean(dim=1, keepdim=True)
    if advantage_estimator == "rloo":
        advantages = (grouped - mean) * (group_size / (group_size - 1))
    elif scale_rewards == "group":
        advantages = (grouped - mean) / (grouped.std(dim=1, keepdim=True) + STD_EPSILON)
    elif scale_rewards == "batch":
        advantages = (grouped - mean) / (rewards.std() + STD_EPSILON)
    else:
        advantages = grouped - mean
    # The mean of equal numbers can miss them by a rounding error, which a division by eps would blow up.
    is_flat = grouped.amax(dim=1, keepdim=True) == grouped.amin(dim=1, keepdim=True)
    return advantages.masked_fill(is_flat, 0.0).view(-1)


def relay_advantages_reference(
    is_correct: torch.Tensor,
    num_teacher_tokens: torch.Tensor,
    num_completion_tokens: torch.Tensor,
    num_calls: torch.Tensor,
    group_size: int,
    reward: str,
    scale_rewards: str,
    advantage_estimator: str,
    bonus: float,
    exploration: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op: (rewards [N] fp32, advantages [N] fp32)."""
    is_correct = is_correct.bool()
    call_ratios = call_ratios_reference(num_teacher_tokens, num_completion_tokens)
    if reward == "simple":
        rewards = simple_rewards_reference(is_correct, call_ratios)
    else:
        rewards = difficulty_aware_rewards_reference(
            is_correct, num_calls > 0, call_ratios, group_size, bonus, exploration
        )
    return rewards, group_advantages_reference(rewards, group_size, scale_rewards, advantage_estimator)
