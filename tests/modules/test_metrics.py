"""Figures of completions and groups."""

from __future__ import annotations

import pytest
import torch

from relay_lightning.modules.metrics import add_ratios, answer_ratios, completion_ratios, divide, group_ratios
from relay_lightning.rewards.answers import AnswerStatus
from relay_lightning.types import (
    Completion,
    FinishReason,
    Prompt,
    RelaySpan,
    RewardCase,
    Rollout,
    RolloutGroup,
    TokenSource,
)


def completion(
    num_student: int, num_teacher: int = 0, *, num_malformed: int = 0, finish_reason: FinishReason = FinishReason.STOP
) -> Completion:
    """`num_student` student tokens, then a span of `num_teacher` teacher tokens out of 10 asked for."""
    num_tokens = num_student + num_teacher
    spans = [RelaySpan(num_student, num_tokens, 10, FinishReason.DELIVERED, 0)] if num_teacher else []
    return Completion(
        prompt_id=0,
        sample_index=0,
        token_ids=[0] * num_tokens,
        token_source=[TokenSource.STUDENT] * num_student + [TokenSource.TEACHER] * num_teacher,
        log_probs=[0.0] * num_tokens,
        sampling_log_probs=[0.0] * num_tokens,
        spans=spans,
        finish_reason=finish_reason,
        num_malformed_calls=num_malformed,
    )


def test_completions_are_counted_sum_over_sum() -> None:
    done = [completion(9, 1), completion(10, num_malformed=3), completion(20, finish_reason=FinishReason.LENGTH)]
    metrics = divide(completion_ratios(done))
    assert metrics == {
        "completions/mean_length": pytest.approx(40 / 3),
        "completions/clipped_ratio": pytest.approx(1 / 3),
        "relay/call_ratio": pytest.approx(1 / 40),
        "relay/calls_per_completion": pytest.approx(1 / 3),
        "relay/called_frac": pytest.approx(1 / 3),
        "relay/malformed_call_frac": pytest.approx(3 / 4),
        "relay/requested_tokens_per_call": 10.0,
        "relay/teacher_tokens": pytest.approx(1 / 3),
    }


def test_parts_add_up_to_the_whole() -> None:
    done = [completion(9, 1), completion(4, 2), completion(7)]
    parts = add_ratios(completion_ratios(done[:1]), completion_ratios(done[1:]))
    assert divide(parts) == divide(completion_ratios(done))
    assert divide(add_ratios({}, parts)) == divide(parts)


def test_nothing_decoded_gives_zeros() -> None:
    assert set(divide(completion_ratios([])).values()) == {0.0}


def test_several_processes_are_summed_before_they_are_divided() -> None:
    other = torch.tensor([[9.0, 10.0]], dtype=torch.float64)
    assert divide({"share": (1.0, 30.0)}, lambda table: table + other) == {"share": 0.25}


def test_groups_give_rewards_and_cases() -> None:
    def group(rewards: list[float], case: RewardCase) -> RolloutGroup:
        rollouts = [Rollout(completion(1), is_correct=reward > 0, reward=reward, advantage=0.0) for reward in rewards]
        return RolloutGroup(Prompt(0, (1,)), rollouts, case)

    groups = [
        group([1.5, 0.0], RewardCase.STUDENT_SOLVABLE),
        group([0.0, 0.0], RewardCase.TEACHER_UNSOLVABLE),
        group([-1.0, -1.0], RewardCase.TEACHER_UNSOLVABLE),
        group([0.5, -0.5], RewardCase.TEACHER_DEPENDENT),
    ]
    metrics = divide(group_ratios(groups))
    assert metrics["reward"] == pytest.approx(-0.5 / 8)
    assert metrics["reward_std"] == pytest.approx((1.5 / 2**0.5 + 1.0 / 2**0.5) / 4)
    assert metrics["frac_reward_zero_std"] == 0.5
    assert metrics["train/accuracy"] == 2 / 8
    assert [metrics[f"reward_case/{case.value}"] for case in RewardCase] == [0.25, 0.25, 0.5]


def test_answers_that_are_missing_or_not_understood_are_told_apart() -> None:
    statuses = [AnswerStatus.MISSING, AnswerStatus.CORRECT, AnswerStatus.UNPARSABLE, AnswerStatus.MISSING]
    assert divide(answer_ratios(statuses)) == {"answers/missing_frac": 0.5, "answers/unparsable_frac": 0.25}
