"""What the relay step reads and writes: one row of flat tensors per slot.

Shapes: S slots, L the longest completion.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor


class RowStatus(IntEnum):
    """Where a slot's completion stands. Each step writes to rows of its own writer only and leaves all others alone."""

    EMPTY = 0
    """No completion."""
    STUDENT = 1
    """The student writes the next token."""
    TEACHER = 2
    """The teacher writes the next token."""
    CALLED = 3
    """The student asked for `command_n` tokens; the row waits for the teacher to read what it has not seen."""
    DELIVERED = 4
    """The teacher wrote its span; the row waits for the student to read it."""
    TEACHER_ENDED = 5
    """The teacher's end-of-sequence token ended its span early and was dropped; the row waits for the student."""
    STOP = 6
    """Finished: the student wrote its end-of-sequence token."""
    TEACHER_STOP = 7
    """Finished: the teacher wrote its end-of-sequence token."""
    LENGTH = 8
    """Finished: the token limit is used up."""


class Writer(IntEnum):
    """Whose logits a step samples from; the value is its rows' status and the `token_source` it writes."""

    STUDENT = 1
    TEACHER = 2


@dataclass(frozen=True, slots=True)
class RelayStepState:
    """The decode state of S slots. The tensors are written in place; the fields marked * are set by the caller only."""

    tokens: Tensor
    """[S, L + 1] int64: completion tokens; the last column takes the writes of rows that are left alone."""
    token_source: Tensor
    """[S, L + 1] uint8: who wrote each (1 student, 2 teacher)."""
    log_probs: Tensor
    """[S, L + 1] fp32: at the sampling temperature, neither truncated nor masked (temperature 0 counts as 1)."""
    sampling_log_probs: Tensor
    """[S, L + 1] fp32: under the distribution that was sampled from."""
    last_token: Tensor
    """[S] int64: the newest token of the context, not yet in the writer's cache."""
    num_tokens: Tensor
    """[S] int64: completion tokens written."""
    status: Tensor
    """[S] uint8: `RowStatus`."""
    command_state: Tensor
    """[S] int64: state of the command automaton."""
    command_n: Tensor
    """[S] int64: the number read by the automaton; once the status is CALLED, the tokens asked for."""
    token_limit: Tensor
    """[S] int64*: number of tokens at which the completion ends."""
    span_limit: Tensor
    """[S] int64*: number of completion tokens at which the teacher's span ends."""
    can_call: Tensor
    """[S] bool*: whether commands are allowed."""
    ends_on_teacher_eos: Tensor
    """[S] bool*: whether the teacher's end-of-sequence token finishes the completion; otherwise control returns."""
    prompt_id: Tensor
    """[S] int64*: random key."""
    sample_index: Tensor
    """[S] int64*: random key."""
    num_arrived: Tensor
    """[S] int32: the Triton kernel's own; zero between steps."""

    @classmethod
    def empty(cls, num_slots: int, max_tokens: int, device: torch.device | str = "cpu") -> RelayStepState:
        """A state without completions: everything zero."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        wide = (num_slots, max_tokens + 1)
        return cls(
            tokens=zeros(*wide),
            token_source=zeros(*wide, dtype=torch.uint8),
            log_probs=zeros(*wide, dtype=torch.float32),
            sampling_log_probs=zeros(*wide, dtype=torch.float32),
            last_token=zeros(num_slots),
            num_tokens=zeros(num_slots),
            status=zeros(num_slots, dtype=torch.uint8),
            command_state=zeros(num_slots),
            command_n=zeros(num_slots),
            token_limit=zeros(num_slots),
            span_limit=zeros(num_slots),
            can_call=zeros(num_slots, dtype=torch.bool),
            ends_on_teacher_eos=zeros(num_slots, dtype=torch.bool),
            prompt_id=zeros(num_slots),
            sample_index=zeros(num_slots),
            num_arrived=zeros(num_slots, dtype=torch.int32),
        )

    @property
    def num_slots(self) -> int:
        return self.tokens.shape[0]

    @property
    def max_tokens(self) -> int:
        """L: the longest completion that fits."""
        return self.tokens.shape[1] - 1
