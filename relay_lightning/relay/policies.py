"""Who writes next. Shapes: N rows, V vocabulary.

The learned policy is the student's command; the others are the baselines that it is measured against. They hand over
without a command, and `CallLimits.spent_calls` says what the student's own commands do under them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from relay_kernels.relay_step import MAX_REQUEST, RandomStream, philox_uniform
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyView:
    """What a policy may look at beside the logits, per row of them."""

    prompt_id: Tensor
    """[N] int64."""
    sample_index: Tensor
    """[N] int64."""
    num_tokens: Tensor
    """[N] int64: completion tokens so far, whoever wrote them."""
    segment_start: Tensor
    """[N] int64: completion tokens when the student last took over."""
    seed: Tensor
    """[N] int64."""
    hidden: Tensor | None = None
    """[N, E]: the student's last hidden states, for a policy with `needs_hidden`."""

    def uniform(self) -> Tensor:
        """[N] fp32 in [0, 1): the policy's own draw for the next position of each row."""
        return philox_uniform(self.seed, self.prompt_id, self.sample_index, self.num_tokens, RandomStream.POLICY)


class Policy(Protocol):
    """Decides in the student's rows, before the student's token is drawn."""

    allows_commands: ClassVar[bool]
    """The student's own commands hand over; otherwise `CallLimits.spent_calls` says what they do."""
    needs_teacher: ClassVar[bool]
    decides_per_token: ClassVar[bool]
    """Whether `decide` must be asked at every token."""

    needs_hidden: ClassVar[bool]
    """`PolicyView.hidden` is to be filled."""

    def begin(self, prompt_id: int, sample_index: int, seed: int) -> bool:
        """Returns True if the teacher writes this whole completion."""

    def decide(self, logits: Tensor, view: PolicyView) -> Tensor | None:
        """[N] int64: tokens to ask the teacher for before the next token; 0 lets the student write, None all students.

        logits: [N, V]. On a GPU this is captured and repeated, so it depends on its arguments alone; one that reads a
        value back keeps the decoder from capturing.
        """


class _Base:
    """A policy that leaves everything to the student."""

    allows_commands: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = True
    decides_per_token: ClassVar[bool] = False
    needs_hidden: ClassVar[bool] = False

    def begin(self, prompt_id: int, sample_index: int, seed: int) -> bool:  # noqa: ARG002
        return False

    def decide(self, logits: Tensor, view: PolicyView) -> Tensor | None:  # noqa: ARG002
        return None


class CommandPolicy(_Base):
    """The student hands over by writing a command."""

    allows_commands = True


class TeacherFreePolicy(_Base):
    """The student writes everything."""

    needs_teacher = False


class TeacherOnlyPolicy(_Base):
    """The teacher writes everything."""

    def begin(self, prompt_id: int, sample_index: int, seed: int) -> bool:  # noqa: ARG002
        return True


@dataclass(frozen=True)
class RandomQueryPolicy(_Base):
    """Routes whole queries: the teacher writes a completion with probability p, else the student does."""

    p: float

    def __post_init__(self) -> None:
        _check_probability("p", self.p)

    def begin(self, prompt_id: int, sample_index: int, seed: int) -> bool:
        key = (torch.tensor([prompt_id]), torch.tensor([sample_index]), torch.tensor([0]))
        return float(philox_uniform(seed, *key, RandomStream.POLICY)) < self.p


@dataclass(frozen=True)
class _SpanPolicy(_Base):
    """Asks for spans of n tokens."""

    n: int
    """Tokens to ask for at each hand-over."""

    decides_per_token: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_REQUEST:
            raise ValueError(f"n of {type(self).__name__} must be at least 1, not {self.n}")

    def _ask_where(self, wanted: Tensor) -> Tensor:
        return torch.where(wanted, self.n, 0)


@dataclass(frozen=True)
class RandomTokenPolicy(_SpanPolicy):
    """Hands over before a token with probability p."""

    p: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_probability("p", self.p)

    def decide(self, logits: Tensor, view: PolicyView) -> Tensor:  # noqa: ARG002
        return self._ask_where(view.uniform() < self.p)


@dataclass(frozen=True)
class EntropyPolicy(_SpanPolicy):
    """Hands over where the entropy of the student's next token, in nats, exceeds a threshold."""

    threshold: float

    def decide(self, logits: Tensor, view: PolicyView) -> Tensor:  # noqa: ARG002
        log_probs = logits.float().log_softmax(-1)
        # xlogy-like: a probability of zero times minus infinity counts as zero.
        entropy = -torch.where(log_probs.isinf(), 0.0, log_probs.exp() * log_probs).sum(-1)
        return self._ask_where(entropy > self.threshold)


@dataclass(frozen=True)
class MarginPolicy(_SpanPolicy):
    """Hands over where the two most probable next tokens are closer than a threshold in probability."""

    threshold: float

    def decide(self, logits: Tensor, view: PolicyView) -> Tensor:  # noqa: ARG002
        top = logits.float().softmax(-1).topk(2, dim=-1).values
        return self._ask_where(top[:, 0] - top[:, 1] < self.threshold)


@dataclass(frozen=True)
class FixedPolicy(_SpanPolicy):
    """Hands over after every `every` tokens of the student."""

    every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ValueError(f"every of FixedPolicy must be at least 1, not {self.every}")

    def decide(self, logits: Tensor, view: PolicyView) -> Tensor:  # noqa: ARG002
        return self._ask_where(view.num_tokens - view.segment_start >= self.every)


_BY_NAME: dict[str, Callable[[], Policy]] = {
    "command": CommandPolicy,
    "teacher_free": TeacherFreePolicy,
    "teacher_only": TeacherOnlyPolicy,
    "random": lambda: RandomQueryPolicy(p=0.5),
}


def make_policy(policy: str | Policy) -> Policy:
    """The policy of that name, or `policy` itself when it is none. Raises ValueError for another name."""
    if not isinstance(policy, str):
        return policy
    if policy not in _BY_NAME:
        raise ValueError(
            f"policy={policy!r} is unknown; it is one of {', '.join(_BY_NAME)},"
            " or a policy object such as RandomQueryPolicy(p=0.5)"
        )
    return _BY_NAME[policy]()


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], not {value}")
