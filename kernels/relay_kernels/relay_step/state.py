"""State of the relay step: flat tensors with one row per completion.

Shapes: S rows, L the longest completion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor


class RowStatus(IntEnum):
    """Where a row's completion stands. Each step writes to rows of its own writer only and leaves all others alone."""

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


class TokenSource(IntEnum):
    """Who wrote a token."""

    PROMPT = 0
    STUDENT = 1
    """Also the status of the rows that the student writes."""
    TEACHER = 2
    """Also the status of the rows that the teacher writes."""


class CommandRule(IntEnum):
    """Effect of a command that the student completes, row by row."""

    CALL = 0
    """Hands over to the teacher."""
    TEXT = 1
    """Nothing: it is text like any other, and the student goes on. The automaton starts afresh behind it."""
    MASK_CLOSE = 2
    """Never happens: the tokens that would complete a command are banned."""
    MASK_OPEN = 3
    """Never begins: the tokens that would complete the opening tag are banned, and those of MASK_CLOSE."""


@dataclass(frozen=True, slots=True)
class RelayStepState:
    """The decode state of S rows. The tensors are written in place; the fields marked * are set by the caller only."""

    tokens: Tensor
    """[S, L + 1] int64: completion tokens; the last column takes the writes of rows that are left alone."""
    token_source: Tensor
    """[S, L + 1] uint8: `TokenSource` of each."""
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
    command_rule: Tensor
    """[S] uint8*: `CommandRule`."""
    ends_on_teacher_eos: Tensor
    """[S] bool*: whether the teacher's end-of-sequence token finishes the completion; otherwise control returns."""
    temperature: Tensor
    """[S] fp32*: at least 0; 0 takes the most probable token."""
    top_k: Tensor
    """[S] int64*: at least 0; 0 is off, and so is anything from the vocabulary's size on."""
    top_p: Tensor
    """[S] fp32*: in [0, 1]; 1 is off."""
    min_p: Tensor
    """[S] fp32*: in [0, 1]; 0 is off."""
    seed: Tensor
    """[S] int64*: random key; of any integer the low 64 bits, as `signed_seed` gives them."""
    prompt_id: Tensor
    """[S] int64*: random key."""
    sample_index: Tensor
    """[S] int64*: random key."""
    num_arrived: Tensor
    """[S] int32: the Triton kernel's own; zero between steps."""

    @classmethod
    def empty(cls, num_rows: int, max_tokens: int, device: torch.device | str = "cpu") -> RelayStepState:
        """A state without completions: everything is zero, but temperature and top_p are 1."""

        def full(*shape: int, dtype: torch.dtype = torch.int64, value: int = 0) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        wide = (num_rows, max_tokens + 1)
        return cls(
            tokens=full(*wide),
            token_source=full(*wide, dtype=torch.uint8),
            log_probs=full(*wide, dtype=torch.float32),
            sampling_log_probs=full(*wide, dtype=torch.float32),
            last_token=full(num_rows),
            num_tokens=full(num_rows),
            status=full(num_rows, dtype=torch.uint8),
            command_state=full(num_rows),
            command_n=full(num_rows),
            token_limit=full(num_rows),
            span_limit=full(num_rows),
            command_rule=full(num_rows, dtype=torch.uint8),
            ends_on_teacher_eos=full(num_rows, dtype=torch.bool),
            temperature=full(num_rows, dtype=torch.float32, value=1),
            top_k=full(num_rows),
            top_p=full(num_rows, dtype=torch.float32, value=1),
            min_p=full(num_rows, dtype=torch.float32),
            seed=full(num_rows),
            prompt_id=full(num_rows),
            sample_index=full(num_rows),
            num_arrived=full(num_rows, dtype=torch.int32),
        )

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def max_tokens(self) -> int:
        """L: the longest completion that fits."""
        return self.tokens.shape[1] - 1

    def extended(self, max_tokens: int) -> RelayStepState:
        """Returns the same state with room for completions of `max_tokens` tokens, at least as many as now."""
        longer = self.empty(self.num_rows, max_tokens, self.tokens.device)
        wide = ("tokens", "token_source", "log_probs", "sampling_log_probs")
        for name in wide:
            getattr(longer, name)[:, : self.max_tokens] = getattr(self, name)[:, : self.max_tokens]
        return replace(self, **{name: getattr(longer, name) for name in wide})
