"""Rollouts on the terminal."""

import random
from unicodedata import category

import pytest

from relay_lightning.callbacks.rollout_printer import RolloutPrinter, render_group
from relay_lightning.terminal import HIDDEN_CATEGORIES, escape_terminal
from relay_lightning.types import (
    Completion,
    FinishReason,
    Prompt,
    RelaySpan,
    RewardCase,
    Rollout,
    RolloutGroup,
    TokenSource,
)

BYTE_TOKENS = [bytes([value]) for value in range(256)]


def rollout(text: bytes, num_teacher_tokens: int) -> Rollout:
    """A completion whose last tokens are the teacher's."""
    num_own = len(text) - num_teacher_tokens
    spans = [RelaySpan(num_own, len(text), 9, FinishReason.TEACHER_STOP, num_own)] if num_teacher_tokens else []
    sources = [TokenSource.STUDENT] * num_own + [TokenSource.TEACHER] * num_teacher_tokens
    zeros = [0.0] * len(text)
    done = Completion(0, 0, list(text), sources, zeros, zeros, spans, FinishReason.STOP)
    return Rollout(done, is_correct=bool(num_teacher_tokens), reward=0.5, advantage=0.0)


def test_callers_come_first_and_nothing_of_a_model_is_interpreted():
    rollouts = [rollout(b"alone", 0), rollout(b"[bold]\x1b[2J", 3)]
    group = RolloutGroup(Prompt(0, (1,), question="why\x07?"), rollouts, RewardCase.TEACHER_DEPENDENT)
    lines = render_group(group, 7, BYTE_TOKENS, num_rollouts=2).plain.strip().splitlines()
    assert lines == [
        r"step 7 · why\x07?",
        r"correct, reward 0.50, teacher 3/10: [bold]\x1b[2J",
        "wrong, reward 0.50, teacher 0/5: alone",
    ]


@pytest.mark.parametrize("settings", [{"every_n_train_steps": -1}, {"num_rollouts": 0}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(ValueError, match=r"printer\.every_n_train_steps must be at least 0 and printer\.num_rollouts"):
        RolloutPrinter(**settings)


def test_of_3000_hostile_rows_nothing_acts_on_the_terminal():
    rng = random.Random(0)
    hostile = ["\x1b[2J", "\x1b]0;title\x07", "\u202e", "\u2066", "\x9b31m", "\r", "\b", "\u2028", "\x00", "\ud800"]
    shown = ""
    for _ in range(3000):
        parts = [*hostile, "[red]", "[/red]", "a", "é", chr(rng.randrange(0x11_0000))]
        text = "".join(rng.choices(parts, k=9))
        rollouts = [rollout(text.encode("utf-8", "replace"), 3)]
        group = RolloutGroup(Prompt(0, (1,), question=text), rollouts, RewardCase.TEACHER_DEPENDENT)
        shown += render_group(group, 1, BYTE_TOKENS, num_rollouts=1).plain
    assert not {char for char in shown if category(char) in HIDDEN_CATEGORIES} - {"\n", "\t"}
    assert all(escape_terminal(text) in shown for text in hostile)
