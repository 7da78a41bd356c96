"""Rewards as the framework uses them: cases per group, delivered tokens, soft length penalty."""

from __future__ import annotations

import pytest
import torch

from relay_lightning.objectives import group_advantages
from relay_lightning.rewards.relay_rewards import group_cases, overlong_penalty, relay_rewards
from relay_lightning.types import Completion, FinishReason, RelaySpan, RewardCase, TokenSource


def complete(num_student_tokens, requests):
    """A completion of student tokens followed by spans of (requested, delivered) teacher tokens."""
    source = [TokenSource.STUDENT] * num_student_tokens
    spans = []
    for num_requested, num_delivered in requests:
        start, stop = len(source), len(source) + num_delivered
        reason = FinishReason.DELIVERED if num_requested == num_delivered else FinishReason.TEACHER_STOP
        spans.append(RelaySpan(start, stop, num_requested, reason, command_start=start))
        source += [TokenSource.TEACHER] * num_delivered
    zeros = [0.0] * len(source)
    return Completion(0, 0, [0] * len(source), source, zeros, zeros, spans, FinishReason.STOP)


def reward_of(completions, is_correct, group_size):
    return relay_rewards(
        torch.tensor(is_correct),
        torch.tensor([completion.num_teacher_tokens for completion in completions]),
        torch.tensor([completion.num_tokens for completion in completions]),
        torch.tensor([completion.num_calls for completion in completions]),
        group_size,
    )


def test_each_group_of_a_batch_has_its_own_case():
    """Defect of the released code: the case was decided over the batch, so one easy problem decided it for all."""
    is_correct = [True, False, True, False, False, False]
    has_call = [False, False, True, False, True, False]
    assert group_cases(is_correct, has_call, 2) == [
        RewardCase.STUDENT_SOLVABLE,
        RewardCase.TEACHER_DEPENDENT,
        RewardCase.TEACHER_UNSOLVABLE,
    ]
    assert group_cases(is_correct, has_call, 6) == [RewardCase.STUDENT_SOLVABLE]


def test_cases_take_tensors_too():
    is_correct, has_call = torch.tensor([True, False]), torch.tensor([True, False])
    assert group_cases(is_correct, has_call, 2) == [RewardCase.TEACHER_DEPENDENT]


def test_reward_charges_what_the_teacher_wrote_when_it_wrote_less_than_asked():
    """Defect of the released code: rho came from the n of the command.

    A student that asked for 1000 tokens and got 10 paid a ratio above 1 for a completion of 100 tokens.
    """
    frugal, greedy = complete(90, [(10, 10)]), complete(90, [(1000, 10)])
    rewards = reward_of([frugal, greedy], [True, True], 2)
    torch.testing.assert_close(rewards, torch.tensor([0.9, 0.9]))
    assert rewards[0] == 1.0 - frugal.call_ratio


def test_overlong_penalty_falls_over_the_buffer():
    lengths = torch.tensor([0, 60, 80, 90, 100, 120])
    penalties = overlong_penalty(lengths, max_completion_tokens=100, buffer=20)
    torch.testing.assert_close(penalties, torch.tensor([0.0, 0.0, 0.0, -0.5, -1.0, -1.0]))


def test_overlong_penalty_breaks_a_tie_of_equal_rewards():
    rewards = torch.tensor([1.5, 1.5]) + overlong_penalty(torch.tensor([50, 100]), 100, buffer=20)
    assert group_advantages(torch.tensor([1.5, 1.5]), 2).tolist() == [0.0, 0.0]
    assert group_advantages(rewards, 2).sign().tolist() == [1.0, -1.0]


@pytest.mark.parametrize("buffer", [0, 101])
def test_error_names_the_buffer_when_it_is_out_of_range(buffer):
    with pytest.raises(ValueError, match="buffer"):
        overlong_penalty(torch.tensor([1]), max_completion_tokens=100, buffer=buffer)


def test_error_names_the_argument_when_lengths_differ():
    with pytest.raises(ValueError, match="has_call"):
        group_cases([True, False], [True], 2)
    with pytest.raises(ValueError, match="group_size"):
        group_cases([True], [True], 1)
