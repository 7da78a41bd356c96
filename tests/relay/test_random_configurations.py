"""Random small configurations, decoded by the relay and by a loop that recomputes everything at every token."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

import pytest
import torch
from fake_model import ScriptedModel, relay_engine
from naive_relay import naive_relay
from random_models import ARCHITECTURES, random_model
from small_vocabulary import EOS, FIRST_LETTER, VOCAB_SIZE, VOCABULARY, spell
from transformers import PreTrainedModel

from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.protocol import CallProtocol, CompiledProtocol
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import Prompt

NUM_DEFAULT, NUM_SLOW = 4, 60
LOG_PROB_TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
TEXTS = ["<call>3</call>", "x<call>12</call>", "<call>0</call>", "<call> 4 </call>", "<call>999</call>", "</call>",
         "<call", ">.<call>1</call>", "<call>2</call><call>1</call>", "<<call>07</call>"]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A prompt, and what is forced to happen to it."""

    prompt: tuple[int, ...]
    student: dict[int, int]
    """Token by position in the completion."""
    teacher_ends_after: int | None
    """Length of the teacher's context beyond the prompt at which it ends."""


@dataclass(frozen=True)
class Configuration:
    student: tuple[str, int, int, int]
    """Architecture, width of the vocabulary, seed, layers."""
    teacher: tuple[str, int, int, int]
    rows: list[Row]
    budget: int
    max_num_seqs: int
    steps_per_sync: int
    max_calls: int | None
    max_call_tokens: int | None
    eos_policy: Literal["finish", "return"]
    spent_calls: Literal["text", "mask_close", "mask_open"]


def draw(seed: int) -> Configuration:
    rng = random.Random(seed)

    def model() -> tuple[str, int, int, int]:
        extra = rng.choice((0, 0, 0, 5))
        return rng.choice(ARCHITECTURES), VOCAB_SIZE + extra, rng.randrange(3), rng.randint(1, 3)

    budget = rng.randint(1, 40)
    return Configuration(
        student=model(),
        teacher=model(),
        rows=[draw_row(rng, index, budget) for index in range(rng.randint(1, 5))],
        budget=budget,
        max_num_seqs=rng.choice((1, 2, 64)),
        steps_per_sync=rng.choice((1, 1, 3)),
        max_calls=rng.choice((None, None, 0, 1, 2)),
        max_call_tokens=rng.choice((None, None, 1, 5)),
        eos_policy=rng.choice(("finish", "return")),
        spent_calls=rng.choice(("text", "mask_close", "mask_open")),
    )


def draw_row(rng: random.Random, index: int, budget: int) -> Row:
    """The first token names the row; the others are letters."""
    letters = [rng.randrange(FIRST_LETTER, VOCAB_SIZE) for _ in range(rng.randint(0, 30))]
    script: dict[int, int] = {}
    for _ in range(rng.randint(0, 4)):
        start = rng.randrange(budget)
        script |= {start + offset: token for offset, token in enumerate(spell(rng.choice(TEXTS)))}
    if rng.random() < 0.3:
        script[rng.randrange(budget)] = EOS
    return Row((2 + index, *letters), script, rng.randint(0, 30) if rng.random() < 0.4 else None)


@cache
def model(architecture: str, vocab_size: int, seed: int, num_layers: int) -> PreTrainedModel:
    return random_model(architecture, vocab_size, seed=seed, num_layers=num_layers)


def compile_protocol(vocab_size: int) -> CompiledProtocol:
    padded = [*VOCABULARY, *[None] * (vocab_size - VOCAB_SIZE)]
    return CallProtocol().compile_vocabulary(Vocabulary(padded, num_token_ids=VOCAB_SIZE))


@pytest.mark.parametrize(
    "seed", [*range(NUM_DEFAULT), *(pytest.param(s, marks=pytest.mark.slow) for s in range(NUM_DEFAULT, NUM_SLOW))]
)
def test_a_random_configuration_decodes_as_the_naive_loop(seed: int):
    chosen = draw(seed)

    def student_script(context: tuple[int, ...]) -> int | None:
        row = chosen.rows[context[0] - 2]
        return row.student.get(len(context) - len(row.prompt))

    def teacher_script(context: tuple[int, ...]) -> int | None:
        row = chosen.rows[context[0] - 2]
        return EOS if len(context) - len(row.prompt) == row.teacher_ends_after else None

    student, teacher = model(*chosen.student), model(*chosen.teacher)
    engine = relay_engine(
        ScriptedModel(LocalModel(student), student_script),
        ScriptedModel(LocalModel(teacher), teacher_script),
        compile_protocol(chosen.student[1]),
        max_num_seqs=chosen.max_num_seqs,
        steps_per_sync=chosen.steps_per_sync,
    )
    limits = {
        "max_calls": chosen.max_calls,
        "max_call_tokens": chosen.max_call_tokens,
        "eos_policy": chosen.eos_policy,
        "spent_calls": chosen.spent_calls,
    }
    completions = engine.decode(
        [RelayRequest(Prompt(index, row.prompt)) for index, row in enumerate(chosen.rows)],
        SamplingParams(max_completion_tokens=chosen.budget, temperature=0.0),
        **limits,
    )
    for row, completion in zip(chosen.rows, completions, strict=True):
        expected = naive_relay(
            student,
            teacher,
            engine.protocol,
            row.prompt,
            budget=chosen.budget,
            student_script=student_script,
            teacher_script=teacher_script,
            num_token_ids=VOCAB_SIZE,
            **limits,
        )
        assert completion.token_ids == expected.token_ids
        assert completion.token_source == expected.token_source
        assert completion.finish_reason == expected.finish_reason
        assert [(span.start, span.stop, span.num_requested_tokens) for span in completion.spans] == expected.spans
        torch.testing.assert_close(completion.log_probs, expected.log_probs, **LOG_PROB_TOLERANCE)
