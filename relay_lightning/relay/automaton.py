r"""The automaton of a command, first over bytes, then compiled over the tokens of a vocabulary.

The language is the leftmost match of `open \s* 0*[1-9][0-9]* \s* close` with ASCII white space. Its states are the
subset construction of that pattern searched anywhere, so a repeated or broken tag falls back to the longest prefix that
still can become a command, as a regular expression's search does.

Shapes: S states, V vocabulary, A distinct digit actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from relay_kernels.relay_step.commands import MAX_REQUEST, CommandTable

ASCII_SPACE = b" \t\n\r\f\v"
_DIGITS = b"0123456789"
_MAX_SCALE = 10**9
"""Appending nine digits to a number above zero saturates; so does appending more."""

_MAX_STATES = 255
"""States are stored as uint8, and 255 is left free to mean "complete"."""

_KEEP, _BEGIN, _APPEND = 0, 1, 2  # what a byte does to n


@dataclass(frozen=True, slots=True)
class ByteAutomaton:
    """A deterministic automaton over bytes. State 0 is the start; state S, one past the last row, means complete."""

    next_state: torch.Tensor
    """[S, 256] int64, values in [0, S]."""
    digit_kind: torch.Tensor
    """[S, 256] int64: 0 leaves n alone, 1 begins a number with this digit, 2 appends this digit."""
    opens: torch.Tensor
    """[S, 256] bool: the byte completes the open tag."""


def build_byte_automaton(open_tag: bytes, close_tag: bytes) -> ByteAutomaton:
    """The automaton of `open_tag`, a positive number, `close_tag`. Neither tag may hold a digit or white space.

    Because of that, at most one begun command can be reading its number at any byte, so one n is enough.
    Raises ValueError for tags so long that the states do not fit a byte.
    """
    opened = len(open_tag)
    number, accept = opened + 2, opened + 3 + len(close_tag)
    numbering: dict[frozenset[int], int] = {frozenset({0}): 0}
    queue = [frozenset({0})]
    next_rows: list[list[int]] = []
    kind_rows: list[list[int]] = []
    opens = []
    for positions in queue:  # grows while it is read
        next_row, kind_row = [], []
        for byte in range(256):
            successors = frozenset({0}) | {step for at in positions for step in _steps(at, byte, open_tag, close_tag)}
            if accept in successors:
                successors = frozenset({accept})
            elif successors not in numbering:
                numbering[successors] = len(numbering)
                queue.append(successors)
            next_row.append(numbering.get(successors, -1))
            kind_row.append(_KEEP if number not in successors else _APPEND if number in positions else _BEGIN)
        next_rows.append(next_row)
        kind_rows.append(kind_row)
        opens.append([opened - 1 in positions and byte == open_tag[-1] for byte in range(256)])
    if len(next_rows) > _MAX_STATES:
        raise ValueError(f"the tags need {len(next_rows)} states, more than {_MAX_STATES}: choose shorter tags")
    next_state = torch.tensor(next_rows)
    next_state = torch.where(next_state < 0, len(next_rows), next_state)
    return ByteAutomaton(next_state, torch.tensor(kind_rows), torch.tensor(opens))


def _steps(position: int, byte: int, open_tag: bytes, close_tag: bytes) -> list[int]:
    """Where one byte takes one position of the pattern.

    Positions: bytes read of the open tag, up to `opened`; then zeros only, a number above zero, white space after it,
    and one position per byte read of the close tag.
    """
    opened = len(open_tag)
    zeros, number, closing = opened + 1, opened + 2, opened + 3
    steps = []
    if position < opened and byte == open_tag[position]:
        steps.append(position + 1)
    if position == opened and byte in ASCII_SPACE:
        steps.append(opened)
    if position in (opened, zeros, number) and byte in _DIGITS:
        steps.append(zeros if byte == _DIGITS[0] and position != number else number)
    if position in (number, closing) and byte in ASCII_SPACE:
        steps.append(closing)
    if position >= number and byte == close_tag[max(position - closing, 0)]:
        steps.append(max(position, closing) + 1)
    return steps


def compile_table(automaton: ByteAutomaton, token_bytes: Sequence[bytes | None]) -> CommandTable:
    """The automaton over token ids: every token's bytes run from every state, all tokens side by side.

    A token that completes a call drops its bytes after the close tag. A token that is no text (None: special, or beyond
    the vocabulary) takes every state back to the start.
    """
    num_states, vocab_size = automaton.next_state.shape[0], len(token_bytes)
    state = torch.arange(num_states)[:, None].repeat(1, vocab_size)  # [S, V]
    scale = torch.ones_like(state)
    value = torch.zeros_like(state)
    is_opening = torch.zeros(state.shape, dtype=torch.bool)
    next_state = torch.cat([automaton.next_state, torch.full((1, 256), num_states)])  # complete stays complete
    digit_kind = torch.cat([automaton.digit_kind, torch.zeros((1, 256), dtype=torch.int64)])
    opens = torch.cat([automaton.opens, torch.zeros((1, 256), dtype=torch.bool)])
    for column, byte in _byte_columns(token_bytes):
        before = state[:, column]
        state[:, column] = next_state[before, byte]
        is_opening[:, column] |= opens[before, byte]
        kind = digit_kind[before, byte]
        row, hit = (kind != _KEEP).nonzero(as_tuple=True)
        digit, at, begins = byte[hit] - _DIGITS[0], (row, column[hit]), kind[row, hit] == _BEGIN
        scale[at] = torch.where(begins, 0, scale[at] * 10).clamp(max=_MAX_SCALE)
        value[at] = (torch.where(begins, 0, value[at] * 10) + digit).clamp(max=MAX_REQUEST)
    is_complete = state == num_states
    state[is_complete] = 0
    state[:, [token for token, data in enumerate(token_bytes) if data is None]] = 0
    return CommandTable(state.to(torch.uint8), is_complete, is_opening, *_distinct_actions(scale, value))


def _byte_columns(token_bytes: Sequence[bytes | None]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For p = 0, 1, ...: the ids of the tokens with more than p bytes, and byte p of each; both int64."""
    lengths = torch.tensor([len(data or b"") for data in token_bytes], dtype=torch.int64)
    starts = lengths.cumsum(0) - lengths
    data = torch.frombuffer(bytearray(b"".join(data or b"" for data in token_bytes) + b"\0"), dtype=torch.uint8).long()
    columns = []
    tokens = lengths.nonzero()[:, 0]
    position = 0
    while tokens.numel():
        columns.append((tokens, data[starts[tokens] + position]))
        position += 1
        tokens = tokens[lengths[tokens] > position]
    return columns


def _distinct_actions(scale: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(digit_action [S, V], digit_scale [A], digit_value [A]): the pairs of scale and value, numbered, (1, 0) first."""
    row, column = (scale != 1).nonzero(as_tuple=True)
    packed = scale[row, column] * (MAX_REQUEST + 1) + value[row, column]
    distinct, index = torch.unique(packed, return_inverse=True)
    dtype = torch.int16 if len(distinct) < torch.iinfo(torch.int16).max else torch.int32
    action = torch.zeros(scale.shape, dtype=dtype)
    action[row, column] = (index + 1).to(dtype)
    digit_scale = torch.cat([torch.ones(1, dtype=torch.int64), distinct // (MAX_REQUEST + 1)])
    digit_value = torch.cat([torch.zeros(1, dtype=torch.int64), distinct % (MAX_REQUEST + 1)])
    return action, digit_scale, digit_value
