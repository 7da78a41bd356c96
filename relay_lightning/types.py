"""The records that flow from a prompt to a loss.

Shapes: B rows (completions), T tokens of a row (prompt and completion, right-padded), G completions of one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from relay_kernels.relay_step.state import TokenSource as TokenSource  # noqa: PLC0414 - exported from here too


class FinishReason(StrEnum):
    """Why a completion, or a teacher span, ended."""

    STOP = "stop"
    """The student wrote its end-of-sequence token."""
    TEACHER_STOP = "teacher_stop"
    """The teacher wrote its end-of-sequence token."""
    LENGTH = "length"
    """The completion's token budget or the context of a model was used up."""
    DELIVERED = "delivered"
    """Spans only: the teacher wrote all tokens that it was asked for, or as many as `max_call_tokens` allows."""
    TEACHER_ERROR = "teacher_error"
    """The teacher could not be reached; what was written so far stands."""


class RewardCase(StrEnum):
    """The case of a prompt's group that selects its row of the difficulty-aware reward (paper, section 3.3)."""

    STUDENT_SOLVABLE = "student_solvable"
    """Some correct completion made no call."""
    TEACHER_DEPENDENT = "teacher_dependent"
    """Correct completions exist, and all of them called."""
    TEACHER_UNSOLVABLE = "teacher_unsolvable"
    """No completion is correct."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One problem as the models read it."""

    prompt_id: int
    """Identity of the problem: keys the random numbers, so equal ids with equal sample indices draw equal samples."""
    token_ids: tuple[int, ...]
    """The chat-templated prompt in the student's vocabulary."""
    text: str = ""
    """The chat-templated prompt as text; what a teacher of another vocabulary is handed."""
    question: str = ""
    """The question as a person wrote it."""
    answer: str | None = None
    """The reference answer, when there is one."""


@dataclass(frozen=True, slots=True)
class RelaySpan:
    """Tokens that the teacher wrote in one go: the half-open range [start, stop) in completion coordinates."""

    start: int
    stop: int
    num_requested_tokens: int
    """The n that was asked for, before it was clipped to any budget."""
    finish_reason: FinishReason
    command_start: int
    """First token of the command that asked; equals `start` when a policy without commands handed over."""

    @property
    def num_tokens(self) -> int:
        """Tokens that were delivered."""
        return self.stop - self.start

    @property
    def num_command_tokens(self) -> int:
        """Student tokens spent on asking."""
        return self.start - self.command_start


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion: token ids, who wrote each, and why it ended. Lists share one length."""

    prompt_id: int
    sample_index: int
    token_ids: list[int]
    token_source: list[TokenSource]
    log_probs: list[float]
    """Natural log-probability of each token under its author at the sampling temperature, before top-k, top-p and min-p
    (temperature 0 counts as 1). NaN where the teacher wrote in a vocabulary of its own."""
    sampling_log_probs: list[float]
    """The same under the truncated distribution that was sampled from (0.0 at temperature 0)."""
    spans: list[RelaySpan]
    finish_reason: FinishReason
    num_malformed_calls: int = 0
    """Tags the student opened that did not become a call."""
    text: str = ""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_calls(self) -> int:
        return len(self.spans)

    @property
    def num_teacher_tokens(self) -> int:
        """Teacher tokens delivered."""
        return sum(span.num_tokens for span in self.spans)

    @property
    def num_command_tokens(self) -> int:
        return sum(span.num_command_tokens for span in self.spans)

    @property
    def call_ratio(self) -> float:
        """Teacher tokens delivered over all completion tokens (paper, section 3.1); 0.0 for an empty completion."""
        return self.num_teacher_tokens / len(self.token_ids) if self.token_ids else 0.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that has been judged."""

    completion: Completion
    is_correct: bool
    reward: float
    advantage: float


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G rollouts of one prompt, in order of their sample index."""

    prompt: Prompt
    rollouts: list[Rollout]
    reward_case: RewardCase

    @property
    def has_zero_variance(self) -> bool:
        """True when all rewards are equal, so that the group carries no gradient."""
        return len({rollout.reward for rollout in self.rollouts}) <= 1


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One micro-batch of rollouts as tensors; index t of a [B, T] field belongs to token t given those before it."""

    token_ids: torch.Tensor
    """[B, T] int64: prompt and completion, right-padded."""
    attention_mask: torch.Tensor
    """[B, T] bool: real tokens."""
    loss_mask: torch.Tensor
    """[B, T] bool: completion tokens that may be trained on."""
    token_source: torch.Tensor
    """[B, T] uint8: `TokenSource` of every token; padding counts as PROMPT."""
    advantages: torch.Tensor
    """[B] fp32."""
    rollout_log_probs: torch.Tensor
    """[B, T] fp32: log-probabilities under the policy that sampled; 0 where the student did not write the token."""
    old_log_probs: torch.Tensor | None
    """[B, T] fp32: the policy's own log-probabilities before the first update on this rollout; None takes
    `rollout_log_probs`."""
    reference_log_probs: torch.Tensor | None
    """[B, T] fp32: the same under the frozen reference policy, or None when no KL term needs them."""
    num_step_loss_tokens: torch.Tensor
    """[] fp32: loss tokens of the whole optimiser step on all ranks; the N of token-mean losses (docs/numerics.md)."""
    num_step_rollouts: torch.Tensor
    """[] fp32: completions of the whole optimiser step on all ranks."""

    def to(self, device: torch.device | str) -> TrainBatch:
        """The same batch on `device`."""
        values = {name: getattr(self, name) for name in self.__slots__}
        tensors = {name: value.to(device) for name, value in values.items() if isinstance(value, torch.Tensor)}
        return TrainBatch(**(values | tensors))
