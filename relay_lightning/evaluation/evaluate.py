"""evaluate: decode held-out problems and count what is right, who wrote it, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from relay_lightning.relay.requests import sample_requests
from relay_lightning.rewards.answers import AnswerStatus, judge_answers
from relay_lightning.types import Completion, Prompt

if TYPE_CHECKING:
    from relay_lightning.engine.sampling import SamplingParams
    from relay_lightning.relay.engine import RelayEngine
    from relay_lightning.relay.policies import Policy
    from relay_lightning.relay.requests import CallLimits


@dataclass(frozen=True, slots=True)
class Judged:
    """What an evaluation keeps of one completion."""

    prompt_id: int
    is_correct: bool
    num_tokens: int
    num_teacher_tokens: int
    num_calls: int
    num_malformed_calls: int
    is_unparsable: bool = False
    """The answer could not be understood. It counts as wrong, but whether it is nobody knows."""
    num_requested_tokens: int = 0
    """Teacher tokens that the calls asked for, whatever limits cut them to."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Judged completions in the order of the prompts (all samples of a prompt in a row), and their aggregates."""

    completions: tuple[Judged, ...]

    @property
    def num_problems(self) -> int:
        return len({judged.prompt_id for judged in self.completions})

    @property
    def accuracy(self) -> float:
        """Share of correct completions."""
        return self._mean(judged.is_correct for judged in self.completions)

    @property
    def unparsable_frac(self) -> float:
        """Share of completions whose answer could not be understood."""
        return self._mean(judged.is_unparsable for judged in self.completions)

    @property
    def call_ratio(self) -> float:
        """Teacher tokens over all tokens, sum over sum."""
        num_tokens = sum(judged.num_tokens for judged in self.completions)
        return sum(judged.num_teacher_tokens for judged in self.completions) / num_tokens if num_tokens else 0.0

    @property
    def called_frac(self) -> float:
        """Share of completions with at least one call."""
        return self._mean(judged.num_calls > 0 for judged in self.completions)

    @property
    def calls_per_completion(self) -> float:
        return self._mean(judged.num_calls for judged in self.completions)

    @property
    def malformed_call_frac(self) -> float:
        """Share of opened tags that did not become a call; 0.0 when none was opened."""
        num_malformed = sum(judged.num_malformed_calls for judged in self.completions)
        num_opened = num_malformed + sum(judged.num_calls for judged in self.completions)
        return num_malformed / num_opened if num_opened else 0.0

    @property
    def mean_completion_tokens(self) -> float:
        return self._mean(judged.num_tokens for judged in self.completions)

    @property
    def mean_teacher_tokens(self) -> float:
        return self._mean(judged.num_teacher_tokens for judged in self.completions)

    @property
    def requested_tokens_per_call(self) -> float:
        """Teacher tokens that a call asked for, sum over sum; 0.0 without calls."""
        num_calls = sum(judged.num_calls for judged in self.completions)
        return sum(judged.num_requested_tokens for judged in self.completions) / num_calls if num_calls else 0.0

    def _mean(self, values: Any) -> float:
        return sum(values) / len(self.completions) if self.completions else 0.0


def evaluate(
    engine: RelayEngine,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    policy: str | Policy = "command",
    *,
    seed: int = 0,
    num_samples: int = 1,
    teacher_sampling: SamplingParams | None = None,
    limits: CallLimits | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> EvalResult:
    """Decodes every prompt `num_samples` times and judges each completion by its prompt's answer.

    The arguments are those of `sample_requests` and `RelayEngine.generate`. Raises ValueError if a prompt has no
    answer.
    """
    if unanswered := [prompt.prompt_id for prompt in prompts if prompt.answer is None]:
        raise ValueError(
            f"{len(unanswered)} prompts have no answer to be judged by, the first is prompt {unanswered[0]}."
        )
    requests = sample_requests(
        prompts, sampling, num_samples, teacher_sampling=teacher_sampling, policy=policy, limits=limits, seed=seed
    )
    completions = engine.generate(requests, on_progress)
    answers = [request.prompt.answer or "" for request in requests]
    statuses = judge_answers([completion.text for completion in completions], answers)
    return EvalResult(tuple(map(judged, completions, statuses)))


def judged(completion: Completion, status: AnswerStatus) -> Judged:
    """What counts of a completion."""
    return Judged(
        prompt_id=completion.prompt_id,
        is_correct=status is AnswerStatus.CORRECT,
        num_tokens=completion.num_tokens,
        num_teacher_tokens=completion.num_teacher_tokens,
        num_calls=completion.num_calls,
        num_malformed_calls=completion.num_malformed_calls,
        is_unparsable=status is AnswerStatus.UNPARSABLE,
        num_requested_tokens=sum(span.num_requested_tokens for span in completion.spans),
    )


def greedy(sampling: SamplingParams) -> SamplingParams:
    """The same limits at temperature 0: how every reported figure is decoded."""
    return replace(sampling, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)
