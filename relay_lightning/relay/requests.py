"""The records that go into the engine and come out of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from relay_kernels.relay_step import CommandRule

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.policies import Policy
from relay_lightning.types import Completion, Prompt, RelaySpan, TokenSource

EosPolicy = Literal["finish", "return"]
SpentCalls = Literal["text", "mask_close", "mask_open"]

COMMAND_RULES: dict[str, CommandRule] = {
    "text": CommandRule.TEXT,
    "mask_close": CommandRule.MASK_CLOSE,
    "mask_open": CommandRule.MASK_OPEN,
}


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of a completion's calls. Raises ValueError that names the field."""

    max_calls: int | None = None
    """Calls at most; None is no limit."""
    max_call_tokens: int | None = None
    """Tokens of one call at most; None is no limit."""
    eos_policy: EosPolicy = "finish"
    """Effect of the teacher's end-of-sequence token inside a span: `finish` the completion, or `return` control."""
    spent_calls: SpentCalls = "text"
    """Effect of a command where the student cannot call, because its calls are used up or the policy does without: it
    stays in the completion as `text` and the student goes on, or the tokens that would close it (`mask_close`) or its
    opening tag (`mask_open`) are banned."""

    def __post_init__(self) -> None:
        if self.max_calls is not None and self.max_calls < 0:
            raise ValueError(f"max_calls must be at least 0 or None, not {self.max_calls}")
        if self.max_call_tokens is not None and self.max_call_tokens < 1:
            raise ValueError(f"max_call_tokens must be at least 1 or None, not {self.max_call_tokens}")
        if self.eos_policy not in ("finish", "return"):
            raise ValueError(f"eos_policy={self.eos_policy!r} is unknown; it is 'finish' or 'return'")
        if self.spent_calls not in COMMAND_RULES:
            raise ValueError(f"spent_calls={self.spent_calls!r} is unknown; it is one of {', '.join(COMMAND_RULES)}")


@dataclass(frozen=True, slots=True)
class RelayRequest:
    """One completion to be written. It depends on nothing but this record and the two models."""

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Sampling of the student, and the budget of the completion."""
    teacher_sampling: SamplingParams | None = field(default=None, kw_only=True)
    """Sampling of the teacher; its budget and stop strings are not used. None takes `sampling`."""
    policy: str | Policy = field(default="command", kw_only=True)
    """Who writes next; a name is one of `make_policy`."""
    limits: CallLimits = field(default_factory=CallLimits, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    """Key of the random numbers, with the prompt's id and `sample_index`."""
    sample_index: int = field(default=0, kw_only=True)
    """Number of the sample among those of its prompt."""


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What has been written for one request since its last output. The lists of tokens share one length."""

    request_id: int
    token_ids: list[int]
    token_source: list[TokenSource]
    log_probs: list[float]
    """As in `Completion`."""
    spans: list[RelaySpan] = field(default_factory=list)
    """Spans that the teacher has finished, empty ones included."""
    completion: Completion | None = None
    """The whole completion, once it is finished."""

    @property
    def is_finished(self) -> bool:
        return self.completion is not None


def sample_requests(
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    num_samples: int = 1,
    *,
    teacher_sampling: SamplingParams | None = None,
    policy: str | Policy = "command",
    limits: CallLimits | None = None,
    seed: int = 0,
) -> list[RelayRequest]:
    """Returns requests for `num_samples` completions of every prompt, those of one prompt in a row."""
    indexed: Iterable[tuple[Prompt, int]] = ((prompt, index) for prompt in prompts for index in range(num_samples))
    return [
        RelayRequest(
            prompt,
            sampling,
            teacher_sampling=teacher_sampling,
            policy=policy,
            limits=limits or CallLimits(),
            seed=seed,
            sample_index=index,
        )
        for prompt, index in indexed
    ]
