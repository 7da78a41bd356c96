"""From prompts to judged rollout groups: the first hops of a GRPO step.

Shapes: N completions, the G of one prompt in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from relay_kernels import relay_advantages
from torch import Tensor

from relay_lightning import progress
from relay_lightning.data.stream import RolloutBatch
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.modules.phases import REWARD, ROLLOUT, PhaseClock
from relay_lightning.modules.randomness import derive_seed
from relay_lightning.objectives.advantages import group_advantages
from relay_lightning.relay.accounting import DecodeStats
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.requests import CallLimits, sample_requests
from relay_lightning.rewards.answers import AnswerStatus, judge_answers
from relay_lightning.rewards.relay_rewards import group_cases, overlong_penalty
from relay_lightning.types import Completion, Prompt, Rollout, RolloutGroup


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """How training completions are decoded."""

    group_size: int
    """G: completions of one prompt."""
    student: SamplingParams
    teacher: SamplingParams
    policy: str
    limits: CallLimits
    seed: int


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """How judged completions become rewards and advantages."""

    reward: Literal["difficulty_aware", "simple"]
    bonus: float
    exploration: bool
    scale_rewards: Literal["group", "none", "batch"]
    advantage_estimator: Literal["grpo", "rloo"]
    overlong_buffer: int
    """Length of the zone before the token limit in which the soft length penalty grows to -1; 0 is off."""
    call_cost: Literal["delivered", "requested"] = "delivered"
    """Teacher tokens that a correct completion pays for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The G completions of one prompt, each with the judgement of its answer."""

    prompt: Prompt
    completions: list[Completion]
    statuses: list[AnswerStatus]

    @property
    def is_correct(self) -> list[bool]:
        return [status is AnswerStatus.CORRECT for status in self.statuses]


@dataclass(slots=True)
class RolloutCost:
    """What producing a rollout took on this process."""

    stats: DecodeStats = field(default_factory=DecodeStats)
    """Of all sampling rounds together."""
    num_rounds: int = 0
    """More than one only with dynamic sampling."""


class RolloutSampler:
    """Decodes, judges and scores the completions of a rollout.
    `gather` turns an [R, N] tensor of this process into the [W, R, N] tensors of all W processes; it is used for
    rewards that are scaled over the whole batch. `gather_samples` turns this process's samples of a sampling round,
    which are every W-th, into those of all; it is used for dynamic sampling.
    """

    def __init__(
        self,
        engine: RelayEngine,
        decoding: DecodeSettings,
        rewards: RewardSettings,
        *,
        max_sampling_rounds: int = 1,
        gather: Callable[[Tensor], Tensor] | None = None,
        gather_samples: Callable[[list[Sample]], list[Sample]] = list,
        rank: int = 0,
        clock: PhaseClock | None = None,
    ) -> None:
        self._engine = engine
        self._decoding = decoding
        self._rewards = rewards
        self._max_sampling_rounds = max_sampling_rounds
        self._gather = gather
        self._gather_samples = gather_samples
        self._rank = rank
        self._clock = clock or PhaseClock()
        self.cost = RolloutCost()
        """Of the rollout decoded last."""

    def decode(self, batch: RolloutBatch) -> list[Sample]:
        """Returns judged completions of every prompt of the rollout, and gives the memory of keys and values back.

        With dynamic sampling (DAPO), prompts whose completions all earn the same reward teach nothing: they are
        replaced by prompts of further rounds. Where the rounds do not suffice, some of them fill the batch up, so that
        its size never changes. All processes choose together what one process would, and share it out.
        """
        self.cost = RolloutCost()
        try:
            return self._sample(batch)
        finally:
            self._engine.release()

    def score(self, samples: Sequence[Sample]) -> list[RolloutGroup]:
        """Rewards and advantages of the rollout, decided within each prompt's group."""
        with self._clock(REWARD):
            return score_samples(samples, self._rewards, self._decoding, gather=self._gather, rank=self._rank)

    def _sample(self, batch: RolloutBatch) -> list[Sample]:
        """Runs sampling rounds until this process's share of the batch is full, or no round is left."""
        own = self._sample_round(batch, 0)
        if self._max_sampling_rounds == 1:
            return own
        samples = self._gather_samples(own)
        num_prompts, num_processes = len(samples), len(samples) // len(own)
        useful, flat = self._split(samples)
        for sampling_round in range(1, self._max_sampling_rounds):
            if len(useful) >= num_prompts:
                break
            more, more_flat = self._split(self._gather_samples(self._sample_round(batch, sampling_round)))
            useful, flat = useful + more, flat + more_flat
        return (useful + flat)[:num_prompts][self._rank :: num_processes]

    def _sample_round(self, batch: RolloutBatch, sampling_round: int) -> list[Sample]:
        prompts = batch.draw_prompts(sampling_round)
        with self._clock(ROLLOUT):
            completions = self._decode_prompts(prompts, batch.rollout_index, sampling_round)
        with self._clock(REWARD):
            samples = judge(prompts, completions, self._decoding.group_size)
        self.cost.stats += self._engine.stats
        self.cost.num_rounds += 1
        return samples

    def _decode_prompts(self, prompts: Sequence[Prompt], rollout_index: int, sampling_round: int) -> list[Completion]:
        settings = self._decoding
        requests = sample_requests(
            prompts,
            settings.student,
            settings.group_size,
            teacher_sampling=settings.teacher,
            policy=settings.policy,
            limits=settings.limits,
            seed=derive_seed(settings.seed, rollout_index, sampling_round),  # every rollout draws afresh
        )
        with progress.work("rollout", len(requests), "completions") as work:
            return self._engine.generate(requests, on_progress=work.update)

    def _split(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Samples whose rewards differ, and those whose do not."""
        groups = score_samples(samples, self._rewards, self._decoding)
        is_flat = [group.has_zero_variance for group in groups]
        useful = [sample for sample, flat in zip(samples, is_flat, strict=True) if not flat]
        return useful, [sample for sample, flat in zip(samples, is_flat, strict=True) if flat]


def judge(prompts: Sequence[Prompt], completions: Sequence[Completion], group_size: int) -> list[Sample]:
    """Completions grouped by prompt, each compared with its prompt's reference answer.

    Raises ValueError for a prompt without one.
    """
    answers = []
    for prompt in prompts:
        if prompt.answer is None:
            raise ValueError(f"Prompt {prompt.prompt_id} has no reference answer to be rewarded by.")
        answers += [prompt.answer] * group_size
    statuses = judge_answers([completion.text for completion in completions], answers)
    groups = (slice(index * group_size, (index + 1) * group_size) for index in range(len(prompts)))
    return [
        Sample(prompt, list(completions[group]), statuses[group]) for prompt, group in zip(prompts, groups, strict=True)
    ]


def score_samples(
    samples: Sequence[Sample],
    rewards: RewardSettings,
    decoding: DecodeSettings,
    *,
    gather: Callable[[Tensor], Tensor] | None = None,
    rank: int = 0,
) -> list[RolloutGroup]:
    """Rollout groups with rewards and advantages."""
    facts = _facts(samples, rewards, decoding.student.max_completion_tokens)  # [5, N]
    own = slice(0, facts.shape[1])
    if gather is not None and rewards.scale_rewards == "batch":
        own = slice(rank * facts.shape[1], (rank + 1) * facts.shape[1])
        facts = gather(facts).transpose(0, 1).flatten(1)
    correct, num_teacher, num_tokens, num_calls, penalties = facts
    all_rewards, advantages = relay_advantages(
        correct.bool(),
        num_teacher.long(),
        num_tokens.long(),
        num_calls.long(),
        decoding.group_size,
        reward=rewards.reward,
        scale_rewards=rewards.scale_rewards,
        advantage_estimator=rewards.advantage_estimator,
        bonus=rewards.bonus,
        exploration=rewards.exploration,
    )
    if rewards.overlong_buffer:
        all_rewards = all_rewards + penalties
        advantages = group_advantages(
            all_rewards, decoding.group_size, rewards.scale_rewards, rewards.advantage_estimator
        )
    return _build_groups(samples, all_rewards[own].tolist(), advantages[own].tolist())


def _facts(samples: Sequence[Sample], rewards: RewardSettings, max_completion_tokens: int) -> Tensor:
    """[5, N] fp32: correct, teacher tokens that count, completion tokens, calls, length penalty."""
    completions = [completion for sample in samples for completion in sample.completions]
    correct = [is_correct for sample in samples for is_correct in sample.is_correct]
    num_teacher_tokens = [
        requested_tokens(completion, max_completion_tokens)
        if rewards.call_cost == "requested" and is_correct
        else completion.num_teacher_tokens
        for completion, is_correct in zip(completions, correct, strict=True)
    ]
    num_tokens = torch.tensor([float(completion.num_tokens) for completion in completions])
    penalties = torch.zeros_like(num_tokens)
    if rewards.overlong_buffer:
        penalties = overlong_penalty(num_tokens, max_completion_tokens, rewards.overlong_buffer)
    return torch.stack(
        [
            torch.tensor(correct, dtype=torch.float32),
            torch.tensor(num_teacher_tokens, dtype=torch.float32),
            num_tokens,
            torch.tensor([float(completion.num_calls) for completion in completions]),
            penalties,
        ]
    )


def requested_tokens(completion: Completion, max_completion_tokens: int) -> int:
    """Teacher tokens that the calls asked for, each at most as many as the budget had left, and together at most as
    many as the completion has: a share of requested tokens lies in [0, 1], like the call ratio."""
    requested = sum(min(span.num_requested_tokens, max_completion_tokens - span.start) for span in completion.spans)
    return min(requested, completion.num_tokens)


def _build_groups(
    samples: Sequence[Sample], rewards: Sequence[float], advantages: Sequence[float]
) -> list[RolloutGroup]:
    scores = iter(zip(rewards, advantages, strict=True))
    groups = []
    for sample in samples:
        rollouts = [
            Rollout(completion, correct, *next(scores))
            for completion, correct in zip(sample.completions, sample.is_correct, strict=True)
        ]
        has_call = [completion.num_calls > 0 for completion in sample.completions]
        (case,) = group_cases(sample.is_correct, has_call, len(rollouts))
        groups.append(RolloutGroup(sample.prompt, rollouts, case))
    return groups
