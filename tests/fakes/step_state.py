"""States, tables and logits of a relay step, as its tests want them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from relay_kernels.relay_step import CommandTable, RelayStepState, TokenSource, signed_seed

MAX_TOKENS = 12


def put(state: RelayStepState, **values: Any) -> RelayStepState:
    """Writes each value, one number for all rows or one a row, to the field of its name; a seed may be any integer."""
    for name, value in values.items():
        number = signed_seed(value) if name == "seed" and isinstance(value, int) else value
        field = getattr(state, name)
        field.copy_(torch.as_tensor(number).to(field))
    return state


def make_state(num_rows, device, *, status=TokenSource.STUDENT, seed=0, **values):
    """Rows in the middle of their completions, some close to a limit."""
    generator = torch.Generator().manual_seed(seed)
    state = RelayStepState.empty(num_rows, MAX_TOKENS)
    put(state, status=status)
    state.num_tokens.copy_(torch.randint(0, MAX_TOKENS - 1, (num_rows,), generator=generator))
    state.token_limit.fill_(MAX_TOKENS)
    state.token_limit[::5] = state.num_tokens[::5] + 1
    state.span_limit.copy_(state.num_tokens + torch.randint(1, 3, (num_rows,), generator=generator))
    state.ends_on_teacher_eos[::2] = True
    state.prompt_id.copy_(torch.randint(0, 2**40, (num_rows,), generator=generator))
    state.sample_index.copy_(torch.arange(num_rows))
    return copied(put(state, **values), device)


def copied(state, device="cpu"):
    """The same state on `device`, in tensors of its own."""
    return RelayStepState(
        **{field.name: getattr(state, field.name).to(device).clone() for field in dataclasses.fields(state)}
    )


def make_table(vocab_size, device, seed=0):
    """A random automaton of 5 states in which a third of the tokens complete a command."""
    generator = torch.Generator().manual_seed(seed)
    is_complete = torch.rand(5, vocab_size, generator=generator) < 0.3
    is_opening = torch.rand(5, vocab_size, generator=generator) < 0.3
    return CommandTable(
        next_state=torch.randint(0, 5, (5, vocab_size), generator=generator)
        .masked_fill(is_complete, 0)
        .to(torch.uint8),
        is_complete=is_complete,
        is_opening=is_opening,
        digit_action=torch.randint(0, 4, (5, vocab_size), generator=generator).to(torch.int16),
        digit_scale=torch.tensor([1, 10, 0, 10**9]),
        digit_value=torch.tensor([0, 7, 3, 10**9 - 1]),
    ).to(device)


def make_logits(shape, device, dtype=torch.float32, *, spread=2.0, seed=0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread).to(device, dtype)
