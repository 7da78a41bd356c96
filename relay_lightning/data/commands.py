"""Commands inserted into plain completions: the training text of the warm-up (paper, section 3.2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

MAX_COMMANDS = 3
MAX_DIGIT_EXPONENT = 3
"""n reaches 9 * 10**3: the paper's range for completions of up to 8192 tokens."""


def insert_commands(
    token_ids: Sequence[int],
    encode_command: Callable[[int], list[int]],
    rng: random.Random,
    *,
    max_commands: int = MAX_COMMANDS,
    max_digit_exponent: int = MAX_DIGIT_EXPONENT,
    command_free_share: float = 0.25,
) -> list[int]:
    """The completion with up to `max_commands` commands written in at uniform random token positions.

    With probability `command_free_share` none is; otherwise 1 to `max_commands`, each as likely. (The paper's uniform
    0 to 3 is a share of a quarter.) A command asks for n = d * 10**k tokens, d uniform in 1..9 and k uniform in
    0..`max_digit_exponent`, but never for more than the completion has left. `encode_command(n)` gives its tokens.
    The completion's own tokens stay as they are; an empty completion gets no command.
    """
    if not token_ids or rng.random() < command_free_share:
        return list(token_ids)
    num_commands = min(rng.randint(1, max_commands), len(token_ids))
    positions = sorted(rng.sample(range(len(token_ids)), num_commands))
    written: list[int] = []
    start = 0
    for position in positions:
        num_left = len(token_ids) - position
        num_requested_tokens = min(rng.randint(1, 9) * 10 ** rng.randint(0, max_digit_exponent), num_left)
        written += [*token_ids[start:position], *encode_command(num_requested_tokens)]
        start = position
    return [*written, *token_ids[start:]]
