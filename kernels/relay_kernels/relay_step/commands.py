"""The command automaton of a vocabulary, as tensors: one lookup per row tells whether a token completes a call.

Shapes: B rows, V vocabulary, S automaton states, A distinct digit actions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

MAX_REQUEST = 10**9 - 1
"""Largest number of tokens a command can ask for; longer numbers saturate here, so that n times 10^9 fits 64 bits."""


@dataclass(frozen=True, slots=True)
class CommandTable:
    """The transitions of the command automaton over token ids. State 0 is the start; state and n of a fresh row are 0.

    The automaton accepts valid calls only: a command with n = 0 never completes.
    """

    next_state: torch.Tensor
    """[S, V] uint8: the state after the token; 0 where the token completes a call."""
    is_complete: torch.Tensor
    """[S, V] bool: the token completes a call."""
    is_opening: torch.Tensor
    """[S, V] bool: the token completes the opening tag, at any of its bytes up to the one that completes a call."""
    digit_action: torch.Tensor
    """[S, V] int16 or int32: the entry of `digit_scale` and `digit_value` that the token applies to n; 0 keeps n."""
    digit_scale: torch.Tensor
    """[A] int64: 10^(digits appended to n), at most 10^9; 0 where the token begins a new number."""
    digit_value: torch.Tensor
    """[A] int64: the value of those digits, at most `MAX_REQUEST`."""

    @property
    def num_states(self) -> int:
        return self.next_state.shape[0]

    @property
    def vocab_size(self) -> int:
        return self.next_state.shape[1]

    def to(self, device: torch.device | str) -> CommandTable:
        """The same table on `device`."""
        return CommandTable(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def advance_commands(
    table: CommandTable, state: torch.Tensor, n: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The automaton after one student token per row: (state, n, is_call), each [B]; pure lookups, no synchronisation.

    `n' = min(n * digit_scale + digit_value, MAX_REQUEST)`. Where `is_call` (bool) is set, the token completed a call
    for n' >= 1 tokens and the state is 0 again; elsewhere n' is only the number read so far.

    Args:
        table: on the device of the rows.
        state: [B] integer, 0 at the start of a completion and after every teacher span.
        n: [B] int64 (or any integer type that holds `MAX_REQUEST`).
        tokens: [B] integer token ids, each in [0, V).

    State and n keep their dtypes. The inputs are not modified.
    """
    row, column = state.long(), tokens.long()
    action = table.digit_action[row, column].long()
    requested = (n.long() * table.digit_scale[action] + table.digit_value[action]).clamp(max=MAX_REQUEST)
    return table.next_state[row, column].to(state.dtype), requested.to(n.dtype), table.is_complete[row, column]
