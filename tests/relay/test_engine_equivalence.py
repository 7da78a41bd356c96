"""Batched, cached relay decoding equals a loop that recomputes everything at every token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from fake_model import ScriptedModel, UniformEngine, relay_engine
from naive_relay import NaiveResult, naive_relay
from random_models import ARCHITECTURES, random_model
from small_vocabulary import EOS, FIRST_LETTER, VOCAB_SIZE, small_protocol, spell
from transformers import PreTrainedModel

from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.types import Completion, FinishReason, Prompt

LOG_PROB_TOLERANCE = 1e-4
"""fp32, sums of a few hundred terms in another order."""
BUDGET = 40


@dataclass(frozen=True)
class Case:
    """What is forced to happen to one prompt; elsewhere the models write what they like, but do not end."""

    prompt_length: int
    student: tuple[tuple[int, str], ...] = ()
    """(position in the completion, text)."""
    teacher_ends_after: int | None = None
    """The teacher's context length, beyond the prompt, at which it writes its end-of-sequence token."""
    student_ends_after: int | None = None


CASES = {
    "no call": Case(9),
    "call at the first token": Case(5, ((0, "<call>3</call>"),)),
    "two calls in a row": Case(7, ((2, "<call>4</call>"), (9, "<call>2</call>"))),
    "command spelled by straddling tokens": Case(6, ((3, "x<call>12</call>"), (20, ">.<call>1</call>"))),
    "a span cut by the budget": Case(11, ((6, "<call>999</call>"),)),
    "a command completed by the last token": Case(4, ((BUDGET - 3, "<call>7</call>"),)),
    "the teacher ends inside its span": Case(8, ((4, "<call>9</call>"),), teacher_ends_after=7),
    "the teacher ends at once": Case(3, ((1, "<call>5</call>"),), teacher_ends_after=1),
    "the teacher ends at once, and again": Case(
        3, ((0, "<call>5</call>"), (3, "<call>6</call>")), teacher_ends_after=0
    ),
    "zero tokens asked for": Case(6, ((2, "<call>0</call>"),)),
    "the student ends early": Case(12, student_ends_after=5),
    "a very long prompt": Case(90, ((5, "<call>6</call>"), (25, "<call>3</call>"))),
    "a prompt of one token": Case(1, ((5, "<call>6</call>"),)),
}


def prompt_of(name: str) -> tuple[int, ...]:
    """The first token names the case, some of them pieces of a tag; the others are letters."""
    index = list(CASES).index(name)
    generator = torch.Generator().manual_seed(index)
    letters = torch.randint(FIRST_LETTER, VOCAB_SIZE, (CASES[name].prompt_length - 1,), generator=generator)
    return (2 + index, *letters.tolist())


def case_of(context: tuple[int, ...]) -> tuple[Case, int]:
    """The case that a context belongs to, and its length beyond the prompt."""
    case = list(CASES.values())[context[0] - 2]
    return case, len(context) - case.prompt_length


def student_script(context: tuple[int, ...]) -> int | None:
    case, position = case_of(context)
    for start, text in case.student:
        tokens = spell(text)
        if start <= position < start + len(tokens):
            return tokens[position - start]
    return EOS if case.student_ends_after == position else None


def teacher_script(context: tuple[int, ...]) -> int | None:
    case, position = case_of(context)
    return EOS if case.teacher_ends_after == position else None


@cache
def pair(architecture: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    return random_model(architecture, VOCAB_SIZE), random_model(architecture, VOCAB_SIZE, seed=1, num_layers=3)


@cache
def naive(
    architecture: str, name: str, eos_policy: str, max_calls: int | None = None, spent_calls: str = "text"
) -> NaiveResult:
    return naive_relay(
        *pair(architecture),
        small_protocol(),
        prompt_of(name),
        budget=BUDGET,
        student_script=student_script,
        teacher_script=teacher_script,
        eos_policy=eos_policy,
        max_calls=max_calls,
        spent_calls=spent_calls,
    )


def engine(architecture: str, max_num_seqs: int) -> UniformEngine:
    student, teacher = pair(architecture)
    engines = ScriptedModel(LocalModel(student), student_script), ScriptedModel(LocalModel(teacher), teacher_script)
    return relay_engine(*engines, small_protocol(), max_num_seqs=max_num_seqs)


def requests(names: Iterable[str]) -> list[RelayRequest]:
    return [RelayRequest(Prompt(index, prompt_of(name))) for index, name in enumerate(names)]


def assert_same(completion: Completion, expected: NaiveResult) -> None:
    assert completion.token_ids == expected.token_ids
    assert completion.token_source == expected.token_source
    assert completion.finish_reason == expected.finish_reason
    spans = [(span.start, span.stop, span.num_requested_tokens) for span in completion.spans]
    assert spans == expected.spans
    torch.testing.assert_close(completion.log_probs, expected.log_probs, rtol=0, atol=LOG_PROB_TOLERANCE)


GREEDY = SamplingParams(max_completion_tokens=BUDGET, temperature=0.0)


@pytest.mark.parametrize("eos_policy", ["finish", "return"])
@pytest.mark.parametrize("max_num_seqs", [1, 4, 64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decode_equals_the_naive_loop(architecture: str, max_num_seqs: int, eos_policy: str):
    completions = engine(architecture, max_num_seqs).decode(requests(CASES), GREEDY, eos_policy=eos_policy)
    for name, completion in zip(CASES, completions, strict=True):
        assert_same(completion, naive(architecture, name, eos_policy))


def test_the_cases_are_what_their_names_say():
    results = {name: naive("qwen3", name, "finish") for name in CASES}
    assert not results["no call"].spans
    assert results["call at the first token"].spans[0] == (3, 6, 3)
    assert [span[:2] for span in results["two calls in a row"].spans] == [(5, 9), (12, 14)]
    assert len(results["command spelled by straddling tokens"].spans) == 2
    assert results["a span cut by the budget"].spans == [(9 + 2, BUDGET, 999)]
    assert results["a command completed by the last token"].spans == []
    assert results["the teacher ends inside its span"].finish_reason == FinishReason.TEACHER_STOP
    assert results["the teacher ends at once"].spans == [(4, 5, 5)]
    assert naive("qwen3", "the teacher ends at once", "return").spans[0] == (4, 4, 5)
    assert naive("qwen3", "the teacher ends at once, and again", "return").spans[:2] == [(3, 3, 5), (6, 6, 6)]
    assert not results["zero tokens asked for"].spans
    assert len(results["the student ends early"].token_ids) == 6


@pytest.mark.parametrize("spent_calls", ["text", "mask_close", "mask_open"])
def test_commands_do_what_is_asked_when_the_calls_are_used_up(spent_calls: str):
    completions = engine("qwen3", 4).decode(requests(CASES), GREEDY, max_calls=1, spent_calls=spent_calls)
    for name, completion in zip(CASES, completions, strict=True):
        assert_same(completion, naive("qwen3", name, "finish", 1, spent_calls))
    two_calls = completions[list(CASES).index("two calls in a row")]
    assert two_calls.num_calls == 1
    assert two_calls.token_ids != naive("qwen3", "two calls in a row", "finish").token_ids
    num_tags = two_calls.text.count("<call>"), two_calls.text.count("</call>")
    assert num_tags == {"text": (2, 2), "mask_close": (2, 1), "mask_open": (1, 2)}[spent_calls]
