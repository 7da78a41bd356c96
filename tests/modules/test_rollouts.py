"""Judging and scoring, and the small parts around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.modules.randomness import derive_seed, seeded
from relay_lightning.modules.rollout_buffer import RolloutBuffer
from relay_lightning.modules.rollouts import DecodeSettings, RewardSettings, Sample, judge, score_samples
from relay_lightning.relay.requests import CallLimits
from relay_lightning.rewards.answers import AnswerStatus
from relay_lightning.types import Completion, FinishReason, Prompt, RelaySpan, RewardCase, TokenSource

DECODING = DecodeSettings(2, SamplingParams(10), SamplingParams(10), "command", CallLimits(), seed=0)
REWARDS = RewardSettings("difficulty_aware", 1.5, True, "group", "grpo", overlong_buffer=0)


def completion(text: str, num_tokens: int = 4, num_teacher: int = 0) -> Completion:
    spans = [RelaySpan(0, num_teacher, num_teacher, FinishReason.DELIVERED, 0)] if num_teacher else []
    return Completion(
        prompt_id=0,
        sample_index=0,
        token_ids=[0] * num_tokens,
        token_source=[TokenSource.STUDENT] * num_tokens,
        log_probs=[0.0] * num_tokens,
        sampling_log_probs=[0.0] * num_tokens,
        spans=spans,
        finish_reason=FinishReason.STOP,
        text=text,
    )


def sample(*statuses: AnswerStatus, num_tokens: int = 4, num_teacher: int = 0) -> Sample:
    completions = [completion("", num_tokens, num_teacher) for _ in statuses]
    return Sample(Prompt(0, (1,), answer="1"), completions, list(statuses))


def test_completions_are_judged_by_their_own_prompts_answer() -> None:
    prompts = [Prompt(0, (1,), answer="1"), Prompt(1, (1,), answer="2")]
    texts = [r"\boxed{1}", r"\boxed{2}", r"\boxed{2}", "2"]
    first, second = judge(prompts, [completion(text) for text in texts], group_size=2)
    assert first.statuses == [AnswerStatus.CORRECT, AnswerStatus.WRONG]
    assert second.statuses == [AnswerStatus.CORRECT, AnswerStatus.MISSING]
    with pytest.raises(ValueError, match="Prompt 7 has no reference answer"):
        judge([Prompt(7, (1,))], [completion("")], group_size=1)


def test_each_group_is_scored_by_its_own_case() -> None:
    groups = score_samples(
        [
            sample(AnswerStatus.CORRECT, AnswerStatus.WRONG),
            sample(AnswerStatus.CORRECT, AnswerStatus.WRONG, num_teacher=1),
            sample(AnswerStatus.WRONG, AnswerStatus.UNPARSABLE, num_teacher=1),
        ],
        REWARDS,
        DECODING,
    )
    assert [group.reward_case for group in groups] == [
        RewardCase.STUDENT_SOLVABLE,
        RewardCase.TEACHER_DEPENDENT,
        RewardCase.TEACHER_UNSOLVABLE,
    ]
    assert [[rollout.reward for rollout in group.rollouts] for group in groups] == [[1.5, 0], [0.75, 0], [0.25, 0.25]]
    assert [rollout.advantage > 0 for rollout in groups[1].rollouts] == [True, False]
    assert groups[2].has_zero_variance


def asking(num_requested: int, num_delivered: int, num_tokens: int = 8) -> Completion:
    """A completion with one call at its third token."""
    span = RelaySpan(3, 3 + num_delivered, num_requested, FinishReason.DELIVERED, 2)
    return replace(completion("", num_tokens), spans=[span])


def rewards_of(*completions: Completion, statuses: list[AnswerStatus], **settings: Any) -> list[float]:
    samples = [Sample(Prompt(0, (1,), answer="1"), list(completions), statuses)]
    (group,) = score_samples(samples, replace(REWARDS, **settings), DECODING)
    return [rollout.reward for rollout in group.rollouts]


def test_a_correct_completion_pays_for_what_it_requested_when_that_is_the_cost() -> None:
    """With delivered tokens as the cost, a clip makes a request of 2 and one of 6 equally dear: the longer one is never
    unlearnt."""
    cut = (asking(2, 2), asking(6, 2))
    right = [AnswerStatus.CORRECT] * 2
    assert rewards_of(*cut, statuses=right) == [0.75, 0.75]
    assert rewards_of(*cut, statuses=right, call_cost="requested") == [0.75, 0.25]
    assert rewards_of(*cut, statuses=right, call_cost="requested", reward="simple") == [0.75, 0.25]


def test_a_request_beyond_the_budget_costs_what_the_budget_had_left_and_never_more_than_everything() -> None:
    """The budget is 10 tokens, and 3 are written when the call comes."""
    right = [AnswerStatus.CORRECT] * 2
    dear = rewards_of(asking(7, 2), asking(10**9, 2), statuses=right, call_cost="requested")
    assert dear == [0.125, 0.125]
    assert rewards_of(asking(7, 1, 5), asking(7, 1, 5), statuses=right, call_cost="requested") == [0.0, 0.0]


def test_a_wrong_completion_earns_no_more_for_asking_for_more() -> None:
    """The exploration reward grows with the share of teacher tokens: paid by requests it would teach to ask for all."""
    wrong = [AnswerStatus.WRONG] * 2
    assert rewards_of(asking(2, 2), asking(7, 2), statuses=wrong, call_cost="requested") == [0.25, 0.25]


def test_the_soft_length_penalty_is_part_of_reward_and_advantage() -> None:
    right = AnswerStatus.CORRECT
    short, long = completion("", num_tokens=6), completion("", num_tokens=9)
    samples = [Sample(Prompt(0, (1,), answer="1"), [short, long], [right, right])]
    (group,) = score_samples(samples, replace(REWARDS, overlong_buffer=4), DECODING)
    assert [rollout.reward for rollout in group.rollouts] == [1.5, 0.75]
    assert group.rollouts[0].advantage > 0 > group.rollouts[1].advantage


def test_scaling_over_the_batch_takes_all_processes_in() -> None:
    mine = [sample(AnswerStatus.CORRECT, AnswerStatus.WRONG)]
    other = [sample(AnswerStatus.CORRECT, AnswerStatus.WRONG, num_teacher=2)]
    rewards = replace(REWARDS, scale_rewards="batch")
    together = score_samples([*other, *mine], rewards, DECODING)
    gathered: list[torch.Tensor] = []
    score_samples(other, rewards, DECODING, gather=lambda facts: gathered.append(facts) or facts[None])
    (group,) = score_samples(mine, rewards, DECODING, gather=lambda facts: torch.stack([gathered[0], facts]), rank=1)
    assert group.rollouts == together[1].rollouts


def test_a_seed_depends_on_every_part_and_on_nothing_else() -> None:
    seeds = {derive_seed(*parts) for parts in ((0, 1, 2), (0, 2, 1), (0, 12), (1, 1, 2))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, 1, 2) == derive_seed(0, 1, 2)


def test_seeded_randomness_repeats_and_leaves_the_outer_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draws = []
    for part in ("a", "a", "b"):
        with seeded(torch.device("cpu"), part):
            draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.rand(3), expected)


def test_a_micro_batch_of_another_rollout_is_refused() -> None:
    class Wanted:
        rollout_index, micro_batch_index, num_micro_batches = 3, 1, 2

    batch: Any = Wanted()
    with pytest.raises(RuntimeError, match=r"Micro-batch 1 of 2 of rollout 3 is next, but rollout -1"):
        RolloutBuffer.empty().micro_batch(batch)
