"""Command insertion for the packaged warm student (method, stage 1), scaled to this world's short solutions."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

MAX_COMMANDS = 3
MAX_EXPONENT = 0
"""n = d * 10^k with k = 0, not in 0..3: a solution here is about 100 tokens long, not some thousand."""
PLAIN_SHARE = 0.4
"""Completions left without a command, so that the student keeps its own way of solving."""


def insert_commands(token_ids: list[int], tokenizer: Tokenizer, generator: torch.Generator) -> list[int]:
    """The completion with 0 to `MAX_COMMANDS` commands in front of uniformly drawn tokens.

    Each asks for n = d * 10^k tokens, d uniform in 1..9 and k in 0..`MAX_EXPONENT`, clipped to what is left of the
    completion. The text behind a command is the same as without it.
    """
    if not token_ids or torch.rand((), generator=generator) < PLAIN_SHARE:
        return token_ids
    num_commands = _draw(1, MAX_COMMANDS, generator)
    positions = sorted((_draw(0, len(token_ids) - 1, generator) for _ in range(num_commands)), reverse=True)
    called = list(token_ids)
    for position in positions:
        requested = _draw(1, 9, generator) * 10 ** _draw(0, MAX_EXPONENT, generator)
        num_tokens = min(requested, len(token_ids) - position)
        called[position:position] = tokenizer.encode(f"<call>{num_tokens}</call>").ids
    return called


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
