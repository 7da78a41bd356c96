"""A teacher of another vocabulary: what it wrote reaches the student as text, once, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from fake_model import FakeModel, relay_engine, scripted_bias
from hypothesis import given
from hypothesis import strategies as st
from small_vocabulary import EOS, FIRST_LETTER, VOCAB_SIZE, VOCABULARY, small_protocol, spell
from torch import Tensor

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import FinishReason, Prompt, RelaySpan, TokenSource

X, Y, Z = FIRST_LETTER, FIRST_LETTER + 1, FIRST_LETTER + 2
PIECES = ["yz", "xx", "x", "y", "z", ".", " ", "zzz"]
TEACHER_VOCABULARY: list[bytes | None] = [None, None, None, *(piece.encode() for piece in PIECES)]
TEACHER_EOS = 2
PROMPT = Prompt(0, (Z, Z), text="zz")


def piece(text: str) -> int:
    return TEACHER_VOCABULARY.index(text.encode())


def bridge() -> TextBridge:
    teacher = Vocabulary(TEACHER_VOCABULARY)
    return TextBridge(small_protocol().vocabulary, teacher, lambda prompt: teacher.spell(prompt.text.encode()))


def decode(student_text: str, teacher: Callable[[int], int], budget: int = 16, **options: object):
    """The completion of a student that writes `student_text` and then x, and of a teacher that writes teacher(k) as
    its k-th token in all; and the engine."""
    script = spell(student_text)
    num_written = 0

    def student_logits(context: tuple[int, ...]) -> Tensor:
        own = [token for token in context[2:] if token not in (Y, EOS)]
        return scripted_bias(script[len(own)] if len(own) < len(script) else X, VOCAB_SIZE)

    def teacher_logits(_context: tuple[int, ...]) -> Tensor:
        nonlocal num_written
        num_written += 1
        return scripted_bias(teacher(num_written), len(TEACHER_VOCABULARY), TEACHER_EOS)

    pair = (
        FakeModel(student_logits, vocab_size=VOCAB_SIZE, eos_token_ids=(EOS,)),
        FakeModel(teacher_logits, vocab_size=len(TEACHER_VOCABULARY), eos_token_ids=(TEACHER_EOS,)),
    )
    engine = relay_engine(*pair, small_protocol(), bridge=bridge(), max_num_seqs=1)
    sampling = SamplingParams(max_completion_tokens=budget, temperature=0.0)
    [completion] = engine.decode([RelayRequest(PROMPT)], sampling, **options)
    return completion, engine


def test_each_side_reads_the_other_in_its_own_tokens():
    completion, engine = decode("x <call>2</call>", lambda k: piece("yz") if k == 1 else piece("y"), budget=12)
    command = len(spell("x <call>2</call>"))
    assert completion.text.startswith("x <call>2</call>yzyx")
    assert completion.spans == [RelaySpan(command, command + 3, 2, FinishReason.DELIVERED, 2)]
    assert completion.token_source[command : command + 4] == [*[TokenSource.TEACHER] * 3, TokenSource.STUDENT]
    [read_by_teacher] = engine.teacher.model.contexts.values()
    assert read_by_teacher[:5] == [piece("z"), piece("z"), piece("x"), piece(" "), piece("yz")]
    [read_by_student] = engine.student.contexts.values()
    assert read_by_student[2 : 2 + command + 3] == [*spell("x <call>2</call>"), Y, Z, Y]
    assert engine.stats.num_text_handovers == 2


def test_teacher_tokens_have_no_log_probability_in_the_students_vocabulary():
    completion, _ = decode("<call>1</call>", lambda _: piece("y"))
    is_teacher = [source == TokenSource.TEACHER for source in completion.token_source]
    assert [math.isnan(log_prob) for log_prob in completion.log_probs] == is_teacher
    assert any(is_teacher)


def test_students_budget_holds_when_the_span_grows_in_its_vocabulary():
    completion, _ = decode("<call>5</call>", lambda _: piece("zzz"), budget=10)
    assert completion.num_tokens == 10
    assert completion.finish_reason == FinishReason.LENGTH
    assert completion.spans[-1].finish_reason == FinishReason.LENGTH
    assert completion.token_ids[-1] == Z


@pytest.mark.parametrize("eos_policy", ["finish", "return"])
def test_teachers_end_of_sequence_becomes_the_students_when_it_finishes(eos_policy: str):
    completion, _ = decode(
        "<call>9</call>", lambda k: piece("y") if k < 3 else TEACHER_EOS, budget=14, eos_policy=eos_policy
    )
    if eos_policy == "finish":
        assert completion.finish_reason == FinishReason.TEACHER_STOP
        assert completion.token_ids[-3:] == [Y, Y, EOS]
    else:
        assert completion.text.startswith("<call>9</call>yyx")
        assert completion.spans[0].finish_reason == FinishReason.TEACHER_STOP


def test_teacher_alone_is_read_in_the_students_vocabulary():
    completion, _ = decode("", lambda k: piece("yz") if k < 4 else TEACHER_EOS, policy="teacher_only")
    assert completion.token_ids == [Y, Z, Y, Z, Y, Z, EOS]
    assert completion.call_ratio == 1.0


@given(st.lists(st.sampled_from([token for token, data in enumerate(VOCABULARY) if data]), max_size=20))
def test_text_survives_the_way_there_and_back_where_both_can_say_it(token_ids: list[int]):
    byte_vocabulary = Vocabulary([bytes([byte]) for byte in range(256)])
    student = small_protocol().vocabulary
    there = TextBridge(student, byte_vocabulary, lambda _: [])
    assert student.bytes_of(there.to_student(there.to_teacher(token_ids))) == student.bytes_of(token_ids)


def test_what_the_student_cannot_say_is_left_out():
    assert bridge().student.spell("xäy".encode()) == [X, Y]
    assert torch.tensor(bridge().to_student([1, piece("xx"), TEACHER_EOS])).tolist() == [X, X]
