"""Rewards of judged completions. N samples, the G samples of a group consecutive; definitions in docs/numerics.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from relay_kernels import relay_advantages
from relay_kernels.checks import check_group_size
from relay_kernels.relay_advantages.reference import group_cases_reference

from relay_lightning.types import RewardCase

CASES = (RewardCase.STUDENT_SOLVABLE, RewardCase.TEACHER_DEPENDENT, RewardCase.TEACHER_UNSOLVABLE)
"""In the order of the op's case codes."""


def relay_rewards(
    is_correct: torch.Tensor,
    num_teacher_tokens: torch.Tensor,
    num_completion_tokens: torch.Tensor,
    num_calls: torch.Tensor,
    group_size: int,
    reward: str = "difficulty_aware",
    bonus: float = 1.5,
    exploration: bool = True,
) -> torch.Tensor:
    """The rewards [N] fp32 of the op `relay_advantages` alone, for when something is added before the advantages.

    Arguments and errors are the op's.
    """
    rewards, _ = relay_advantages(
        is_correct,
        num_teacher_tokens,
        num_completion_tokens,
        num_calls,
        group_size,
        reward=reward,
        bonus=bonus,
        exploration=exploration,
    )
    return rewards


def group_cases(
    is_correct: Sequence[bool] | torch.Tensor, has_call: Sequence[bool] | torch.Tensor, group_size: int
) -> list[RewardCase]:
    """The case of every group, in order. Raises ValueError naming the argument."""
    correct = torch.as_tensor(is_correct, dtype=torch.bool)
    called = torch.as_tensor(has_call, dtype=torch.bool)
    if correct.ndim != 1 or called.shape != correct.shape:
        raise ValueError(
            f"is_correct and has_call must be vectors of equal length; got {[*correct.shape]} and {[*called.shape]}."
        )
    check_group_size(group_size, correct.shape[0])
    return [CASES[code] for code in group_cases_reference(correct, called, group_size).tolist()]


def overlong_penalty(num_completion_tokens: torch.Tensor, max_completion_tokens: int, buffer: int) -> torch.Tensor:
    """What length adds to the reward, [N] fp32: 0 up to max - buffer tokens, then falling linearly to -1 at max.

    DAPO's soft overlong punishment (arXiv 2503.14476, section 3.4). Raises ValueError naming `buffer` unless it is in
    [1, max_completion_tokens].
    """
    if not 1 <= buffer <= max_completion_tokens:
        raise ValueError(f"buffer must be from 1 to max_completion_tokens {max_completion_tokens}; got {buffer}.")
    excess = num_completion_tokens.float() - (max_completion_tokens - buffer)
    return -(excess / buffer).clamp(0.0, 1.0)
