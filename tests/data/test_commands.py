"""Command insertion."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.data.commands import insert_commands

COMMAND_BASE = 10**6


def encode_command(num_requested_tokens: int) -> list[int]:
    """One token that no completion holds and that tells its n."""
    return [COMMAND_BASE + num_requested_tokens]


@given(st.lists(st.integers(0, 99), max_size=30), st.integers(0, 2**32))
def test_removing_the_commands_gives_the_completion_back(token_ids: list[int], seed: int) -> None:
    called = insert_commands(token_ids, encode_command, random.Random(seed))
    assert [token for token in called if token < COMMAND_BASE] == token_ids
    assert len(called) - len(token_ids) <= 3


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30), st.integers(0, 2**32))
def test_no_command_asks_for_more_than_is_left(token_ids: list[int], seed: int) -> None:
    called = insert_commands(token_ids, encode_command, random.Random(seed), command_free_share=0.0)
    commands = [index for index, token in enumerate(called) if token >= COMMAND_BASE]
    assert commands
    for index in commands:
        num_left = sum(token < COMMAND_BASE for token in called[index:])
        assert 1 <= called[index] - COMMAND_BASE <= num_left


def test_numbers_and_counts_follow_the_stated_distribution() -> None:
    rng = random.Random(0)
    token_ids = [0] * 20_000
    counts: Counter[int] = Counter()
    numbers: Counter[int] = Counter()
    for _ in range(2000):
        commands = [token for token in insert_commands(token_ids, encode_command, rng) if token >= COMMAND_BASE]
        counts[len(commands)] += 1
        numbers.update(token - COMMAND_BASE for token in commands)
    assert all(400 < counts[num_commands] < 600 for num_commands in range(4))
    expected = {digit * 10**exponent for digit in range(1, 10) for exponent in range(4)}
    # The few commands near the end are clipped; everything else is d * 10**k.
    unclipped = {number: count for number, count in numbers.items() if number in expected}
    assert set(unclipped) == expected
    assert sum(unclipped.values()) > 0.85 * sum(numbers.values())


def test_no_command_is_written_when_all_shall_be_free_of_them() -> None:
    assert insert_commands([1, 2, 3], encode_command, random.Random(0), command_free_share=1.0) == [1, 2, 3]
