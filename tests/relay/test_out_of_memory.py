"""Decoding that runs out of memory: it goes on with fewer slots, and nothing of what it gives is different."""

from __future__ import annotations

import logging
from random import Random

import pytest
import torch
from fake_model import FakeModel, UniformEngine, relay_engine
from small_vocabulary import VOCAB_SIZE, small_protocol
from torch import Tensor

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.policies import RandomTokenPolicy
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.types import Completion, Prompt

SAMPLED = SamplingParams(max_completion_tokens=20, temperature=1.0)


def short_texts(context: tuple[int, ...]) -> Tensor:
    """Logits that depend on the context alone, under which texts end now and then."""
    rng = Random(str(context))
    return torch.tensor([rng.gauss(0.0, 1.0) for _ in range(VOCAB_SIZE)])


class SmallEngine(FakeModel):
    """Has memory for so many slots; with more, it runs out of it when `num_steps` steps are done."""

    def __init__(self, max_slots: int, num_steps: int) -> None:
        super().__init__(short_texts, vocab_size=VOCAB_SIZE)
        self.max_slots = max_slots
        self.num_steps = num_steps
        self.max_num_seqs_tried: list[int] = []

    def allocate(self, max_num_seqs: int, max_length: int) -> None:
        super().allocate(max_num_seqs, max_length)
        self.max_num_seqs_tried.append(max_num_seqs)
        self.steps_left = self.num_steps if max_num_seqs > self.max_slots else None
        if self.steps_left == 0:
            raise torch.OutOfMemoryError("no memory for the slots")

    def step(self, token_ids: Tensor, is_active: Tensor, slots: Tensor | None = None) -> Tensor:
        if self.steps_left is not None:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise torch.OutOfMemoryError("no memory for a step")
        return super().step(token_ids, is_active, slots)


def decode(max_num_seqs: int, max_slots: int, num_steps: int = 0) -> tuple[list[Completion], UniformEngine, list[int]]:
    """16 completions that hand over at random, with the engine and what it told of its progress."""
    student, teacher = SmallEngine(10**6, 0), SmallEngine(max_slots, num_steps)
    engine = relay_engine(student, teacher, small_protocol(), max_num_seqs=max_num_seqs)
    requests = [RelayRequest(Prompt(index, (2 + index, 3)), sample) for index in range(4) for sample in range(4)]
    progress: list[int] = []
    policy = RandomTokenPolicy(3, 0.2)
    done = engine.decode(requests, SAMPLED, seed=3, policy=policy, on_progress=progress.append)
    return done, engine, progress


@pytest.mark.parametrize("num_steps", [0, 1, 7])
def test_completions_are_those_of_a_decoder_with_few_slots_when_memory_runs_out(num_steps: int, caplog) -> None:
    expected, sober, _ = decode(max_num_seqs=4, max_slots=4)
    assert any(completion.spans for completion in expected)
    with caplog.at_level(logging.WARNING):
        found, engine, progress = decode(16, 4, num_steps)
    assert found == expected
    assert engine.max_num_seqs == 4
    assert [record.getMessage() for record in caplog.records] == [
        "Out of memory with 16 slots: decoding goes on with 8.",
        "Out of memory with 8 slots: decoding goes on with 4.",
    ]
    assert progress[-1] == 16
    assert progress == sorted(set(progress))
    assert engine.stats.num_tokens == sober.stats.num_tokens, "a token of a completion counts once"


def test_what_was_finished_is_not_decoded_again() -> None:
    expected, *_ = decode(16, 16)
    found, engine, progress = decode(16, 8, 20)
    num_finished = 10
    assert num_finished in progress
    assert engine.teacher.max_num_seqs_tried == [16, 16 - num_finished]
    assert found == expected


def test_slots_stay_few_for_the_next_rollout(caplog) -> None:
    _, engine, _ = decode(16, 4)
    caplog.clear()
    engine.decode([RelayRequest(Prompt(index, (2, 3))) for index in range(8)], SAMPLED, policy="teacher_only")
    assert engine.max_num_seqs == 4
    assert not caplog.records


def test_a_single_slot_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="does not suffice to decode a single completion"):
        decode(4, 0)
