"""Stop strings end a completion where its text first holds one, whoever wrote it and wherever tokens begin."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from random import Random

import pytest
import torch
from fake_model import FakeModel, UniformEngine, relay_engine, scripted_bias
from hypothesis import given
from hypothesis import strategies as st
from small_vocabulary import EOS, FIRST_LETTER, VOCAB_SIZE, VOCABULARY, small_protocol, spell
from torch import Tensor

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.policies import FixedPolicy, Policy
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.relay.stop_strings import StopMatcher
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import Completion, FinishReason, Prompt, TokenSource

X, Y = FIRST_LETTER, FIRST_LETTER + 1
SAMPLED = SamplingParams(max_completion_tokens=40)
REQUESTS = [RelayRequest(Prompt(index, (2 + index, X)), SAMPLED) for index in range(6)]
TEACHER_PIECES = ["yz", "xx", "x", "y", "z", "<", ">", "call", "1", ".x", " "]
TEACHER_VOCABULARY: list[bytes | None] = [None, *(piece.encode() for piece in TEACHER_PIECES)]


def hashed_logits(context: tuple[int, ...], vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Logits that depend on the whole context; the text never ends by itself."""
    seed = int.from_bytes(hashlib.sha256(bytes(context)).digest()[:6], "big")
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) + scripted_bias(None, vocab_size)


def build(*, has_bridge: bool = False, steps_per_sync: int = 1) -> UniformEngine:
    student, teacher = FakeModel(hashed_logits, vocab_size=VOCAB_SIZE), FakeModel(hashed_logits, vocab_size=VOCAB_SIZE)
    bridge = None
    if has_bridge:
        size, other = len(TEACHER_VOCABULARY), Vocabulary(TEACHER_VOCABULARY)
        teacher = FakeModel(lambda context: hashed_logits(context, size), vocab_size=size)
        bridge = TextBridge(small_protocol().vocabulary, other, lambda _: other.spell(b"x"))
    return relay_engine(
        student, teacher, small_protocol(), bridge=bridge, max_num_seqs=4, steps_per_sync=steps_per_sync
    )


def text_of(token_ids: list[int]) -> str:
    return b"".join(VOCABULARY[token] or b"" for token in token_ids).decode()


def assert_stopped(found: Completion, whole: Completion, stop: tuple[str, ...]) -> None:
    """By definition: `found` is the shortest beginning of `whole` whose text holds a stop string, without that."""
    ends = (
        count for count in range(1, whole.num_tokens + 1) if any(s in text_of(whole.token_ids[:count]) for s in stop)
    )
    count = next(ends, None)
    if count is None:
        assert found == whole
        return
    text = text_of(whole.token_ids[:count])
    assert found.text == text[: min(text.index(each) for each in stop if each in text)]
    assert found.finish_reason == FinishReason.STOP
    assert found.token_ids == whole.token_ids[:count]
    assert found.token_source == whole.token_source[:count]
    for name in ("log_probs", "sampling_log_probs"):
        values = torch.tensor([getattr(found, name), getattr(whole, name)[:count]])
        assert torch.equal(values[0].nan_to_num(7.0), values[1].nan_to_num(7.0))
    spans = [(span.start, min(span.stop, count), span.command_start) for span in whole.spans if span.start < count]
    assert [(span.start, span.stop, span.command_start) for span in found.spans] == spans


@pytest.mark.parametrize("policy", ["teacher_free", "teacher_only", FixedPolicy(n=3, every=3)])
@pytest.mark.parametrize("has_bridge", [False, True])
@pytest.mark.parametrize("steps_per_sync", [1, 3])
def test_completions_end_where_their_text_first_holds_a_stop_string(
    policy: str | Policy, has_bridge: bool, steps_per_sync: int
):
    requests = [replace(request, policy=policy, seed=1) for request in REQUESTS]
    wholes = build(has_bridge=has_bridge).generate(requests)
    rng, authors = Random(0), set()
    for _ in range(4):
        stops = []
        for whole in wholes:
            starts = [rng.randrange(len(whole.text)) for _ in range(2)]
            stops.append((*(whole.text[start : start + rng.randint(1, 5)] for start in starts), "never"))
        samplings = [replace(SAMPLED, stop=stop) for stop in stops]
        stopped = [replace(request, sampling=each) for request, each in zip(requests, samplings, strict=True)]
        engine = build(has_bridge=has_bridge, steps_per_sync=steps_per_sync)
        for found, whole, stop in zip(engine.generate(stopped), wholes, stops, strict=True):
            assert_stopped(found, whole, stop)
            authors.add(found.token_source[-1])
    assert len(authors) == (1 if isinstance(policy, str) else 2), "both have completed a stop string"


def written(script: str, stop: tuple[str, ...], teacher: int = Y, **options: object) -> Completion:
    """What a student writes who follows the script, and a teacher who always writes one token."""
    tokens = spell(script)

    def student(context: tuple[int, ...]) -> Tensor:
        own = [token for token in context[1:] if token != teacher]
        return scripted_bias(tokens[len(own)] if len(own) < len(tokens) else EOS, VOCAB_SIZE)

    pair = (student, lambda _: scripted_bias(teacher, VOCAB_SIZE))
    engine = relay_engine(*(FakeModel(logits, vocab_size=VOCAB_SIZE) for logits in pair), small_protocol())
    sampling = SamplingParams(30, temperature=0.0, stop=stop)
    [completion] = engine.decode([RelayRequest(Prompt(0, (X,)))], sampling, **options)
    return completion


def test_a_token_that_holds_more_than_the_stop_string_is_kept_and_its_text_is_cut():
    completion = written("z.x<z", stop=("<",), policy="teacher_free")
    assert completion.token_ids == [*spell("z."), VOCABULARY.index(b"x<")]
    assert completion.text == "z.x"


def test_a_stop_string_may_begin_in_the_students_text_and_end_in_the_teachers():
    completion = written("xx z", stop=("xyy",), policy=FixedPolicy(n=3, every=2))
    assert completion.text == "x"
    assert completion.token_ids == [X, X, Y, Y]
    assert completion.token_source[1:] == [TokenSource.STUDENT, TokenSource.TEACHER, TokenSource.TEACHER]
    [span] = completion.spans
    assert (span.start, span.stop) == (2, 4)


def test_a_stop_string_may_begin_in_the_teachers_text_and_end_in_the_students():
    completion = written("xx.z", stop=("y.",), policy=FixedPolicy(n=3, every=2))
    assert completion.text == "xxyy"
    assert completion.token_ids == [X, X, Y, Y, Y, *spell(".")]
    assert completion.num_teacher_tokens == 3


def test_a_command_can_hold_a_stop_string_and_is_then_not_answered():
    completion = written("x<call>1</call>", stop=("</call>",))
    assert completion.text == "x<call>1"
    assert completion.spans == []
    assert completion.finish_reason == FinishReason.STOP


def test_the_first_of_several_stop_strings_counts():
    assert written("xyz.", stop=(".", "z", "yz"), policy="teacher_free", teacher=EOS).text == "x"


def test_the_prompt_is_not_searched():
    assert written("yx", stop=("xy",), policy="teacher_free", teacher=EOS).text == "yx"


@given(
    st.lists(st.none() | st.binary(max_size=3).map(lambda data: bytes(b"ab"[byte % 2] for byte in data)), max_size=25),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_the_matcher_finds_the_first_token_that_completes_a_stop_string(
    pieces: list[bytes | None], stop: list[str], rng: Random
):
    def is_complete(count: int) -> bool:
        text = b"".join(piece or b"" for piece in pieces[:count]).decode()
        return any(each in text for each in stop)

    expected = next((count - 1 for count in range(1, len(pieces) + 1) if is_complete(count)), None)
    matcher, start, found = StopMatcher(stop), 0, None
    while found is None and start < len(pieces):
        chunk = pieces[start : start + rng.randint(1, 5)]
        index = matcher.feed(chunk)
        found = None if index is None else start + index
        start += len(chunk)
    assert found == expected
