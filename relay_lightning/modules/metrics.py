"""Figures of decoded completions, as numerators and denominators, so that several processes add up exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from relay_lightning.rewards.answers import AnswerStatus
from relay_lightning.types import Completion, FinishReason, RewardCase, RolloutGroup

Ratios = Mapping[str, tuple[float, float]]
"""Metric name -> (numerator, denominator)."""


def divide(ratios: Ratios, sum_over_ranks: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
    """The metrics, 0.0 where a denominator is; with `sum_over_ranks`, those of all processes together."""
    table = torch.tensor([list(pair) for pair in ratios.values()], dtype=torch.float64).reshape(-1, 2)
    if sum_over_ranks is not None:
        table = sum_over_ranks(table)
    return {
        name: numerator / denominator if denominator else 0.0
        for name, (numerator, denominator) in zip(ratios, table.tolist(), strict=True)
    }


def add_ratios(first: Ratios, second: Ratios) -> dict[str, tuple[float, float]]:
    """Both together; they must name the same metrics, unless one is empty."""
    if not first or not second:
        return dict(first or second)
    return {name: (first[name][0] + second[name][0], first[name][1] + second[name][1]) for name in first}


def completion_ratios(completions: Sequence[Completion]) -> dict[str, tuple[float, float]]:
    """Lengths and calls, under the names of `completions/` and `relay/`."""
    num_completions = float(len(completions))
    num_tokens = float(sum(completion.num_tokens for completion in completions))
    num_teacher_tokens = float(sum(completion.num_teacher_tokens for completion in completions))
    num_calls = float(sum(completion.num_calls for completion in completions))
    num_malformed = float(sum(completion.num_malformed_calls for completion in completions))
    return {
        "completions/mean_length": (num_tokens, num_completions),
        "completions/clipped_ratio": (
            _count(done.finish_reason == FinishReason.LENGTH for done in completions),
            num_completions,
        ),
        "relay/call_ratio": (num_teacher_tokens, num_tokens),
        "relay/calls_per_completion": (num_calls, num_completions),
        "relay/called_frac": (_count(done.num_calls > 0 for done in completions), num_completions),
        "relay/malformed_call_frac": (num_malformed, num_malformed + num_calls),
        "relay/requested_tokens_per_call": (
            float(sum(span.num_requested_tokens for done in completions for span in done.spans)),
            num_calls,
        ),
        "relay/teacher_tokens": (num_teacher_tokens, num_completions),
    }


def group_ratios(groups: Sequence[RolloutGroup]) -> dict[str, tuple[float, float]]:
    """Rewards, their spread within a group, the cases of the difficulty-aware reward, and accuracy."""
    num_groups = float(len(groups))
    rewards = torch.tensor([[rollout.reward for rollout in group.rollouts] for group in groups], dtype=torch.float64)
    correct = [rollout.is_correct for group in groups for rollout in group.rollouts]
    cases = {
        f"reward_case/{case.value}": (_count(group.reward_case == case for group in groups), num_groups)
        for case in RewardCase
    }
    return {
        "reward": (rewards.sum().item(), float(rewards.numel())),
        "reward_std": (rewards.std(dim=1).sum().item(), num_groups),
        "frac_reward_zero_std": (_count(group.has_zero_variance for group in groups), num_groups),
        "train/accuracy": (_count(correct), float(len(correct))),
        **cases,
    }


def answer_ratios(statuses: Sequence[AnswerStatus]) -> dict[str, tuple[float, float]]:
    """Shares of completions whose answer is missing or could not be understood; both count as wrong."""
    num_answers = float(len(statuses))
    return {
        f"answers/{status.value}_frac": (_count(given is status for given in statuses), num_answers)
        for status in (AnswerStatus.MISSING, AnswerStatus.UNPARSABLE)
    }


def _count(flags: Iterable[bool]) -> float:
    return float(sum(flags))
