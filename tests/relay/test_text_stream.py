"""The pieces of a stream join to the completion's text, with their authors, and show nothing that is cut later."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import accumulate, islice

import pytest
from fake_model import FakeModel, relay_engine, scripted_bias
from hypothesis import given
from hypothesis import strategies as st
from small_vocabulary import EOS, FIRST_LETTER, VOCAB_SIZE, small_protocol, spell
from torch import Tensor

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.policies import FixedPolicy
from relay_lightning.relay.protocol import CallProtocol, CompiledProtocol
from relay_lightning.relay.relay import Relay
from relay_lightning.relay.requests import RequestOutput
from relay_lightning.relay.stop_strings import StopMatcher
from relay_lightning.relay.text_stream import Author, Piece, TextStream
from relay_lightning.types import Completion, FinishReason, Prompt, RelaySpan, TokenSource

VOCABULARY: list[bytes | None] = [
    None, *(bytes([byte]) for byte in b"<>/cal0123 ab"), *(bytes([byte]) for byte in "é中".encode()), "中".encode(),
    b"<call>", b"</call>", b"<call", b"l>", b"2</call>", b"a<call>1", b"1</call>b", b"<call>1</call>", b"ab", b"",
]  # fmt: skip
TOKENS = st.sampled_from(range(len(VOCABULARY)))
STUDENT, TEACHER = TokenSource.STUDENT, TokenSource.TEACHER


@cache
def protocol() -> CompiledProtocol:
    return CallProtocol().compile_bytes(VOCABULARY)


Written = tuple[list[int], list[TokenSource], list[RelaySpan]]


@st.composite
def written(draw: st.DrawFn) -> Written:
    """Tokens and their authors: segments of the student, which end at the first command, and spans of the teacher."""
    tokens, sources, spans = list[int](), list[TokenSource](), list[RelaySpan]()
    for _ in range(draw(st.integers(0, 4))):
        segment = draw(st.lists(TOKENS | st.sampled_from([VOCABULARY.index(b"<call>")]), min_size=1, max_size=12))
        if calls := protocol().scan(segment):
            segment = segment[: calls[0].stop]
        span = draw(st.lists(TOKENS, max_size=4))
        tokens += segment
        spans.append(RelaySpan(len(tokens), len(tokens) + len(span), 9, FinishReason.DELIVERED, len(tokens)))
        tokens += span
        sources += [STUDENT] * len(segment) + [TEACHER] * len(span)
    return tokens, sources, spans


def authors_of(completion: Completion, max_calls: int | None) -> list[Author]:
    """Who wrote each token, by definition: a segment's command is what a scan of the whole segment finds."""
    tokens, sources = completion.token_ids, completion.token_source
    authors: list[Author] = ["teacher" if source == TEACHER else "student" for source in sources]
    starts, stops = [0, *(span.stop for span in completion.spans)], [span.start for span in completion.spans]
    segments = zip(starts, [*stops, completion.num_tokens], strict=True)
    calls = [
        (start + call.start, start + call.stop)
        for start, stop in segments
        for call in protocol().scan(tokens[start:stop])
    ]
    for start, stop in calls[:max_calls]:
        authors[start:stop] = ["command"] * (stop - start)
    return authors


def characters(tokens: list[int], authors: list[Author]) -> list[tuple[str, Author]]:
    """The text's characters, each of which belongs to the author of the token that completes it."""
    decoder, found = codecs.getincrementaldecoder("utf-8")(errors="replace"), []
    for token, author in zip(tokens, authors, strict=True):
        found += [(character, author) for character in decoder.decode(VOCABULARY[token] or b"")]
    return found + [(character, "student") for character in decoder.decode(b"", final=True)]


def completed(written: Written, stop: tuple[str, ...]) -> Completion:
    """The completion that an engine makes of these tokens."""
    tokens, sources, spans = written
    index = StopMatcher(stop).feed(VOCABULARY[token] for token in tokens) if stop else None
    if index is not None:
        tokens, sources = tokens[: index + 1], sources[: index + 1]
        spans = [replace(span, stop=min(span.stop, index + 1)) for span in spans if span.start <= index]
    text = protocol().vocabulary.text_of(tokens)
    zeros = [0.0] * len(tokens)
    text = StopMatcher(stop).cut(text) if stop else text
    return Completion(0, 0, tokens, sources, zeros, zeros, spans, FinishReason.STOP, text=text)


def outputs_of(completion: Completion, sizes: list[int]) -> Iterator[RequestOutput]:
    """The completion in outputs of so many tokens; the last one has the rest."""
    start = 0
    for stop in [*accumulate(sizes), completion.num_tokens]:
        is_last = stop >= completion.num_tokens
        spans = [span for span in completion.spans if start <= span.start and (span.start < stop or is_last)]
        part = completion.token_ids[start:stop], completion.token_source[start:stop], completion.log_probs[start:stop]
        yield RequestOutput(0, *part, spans, completion if is_last else None)
        if is_last:
            return
        start = stop


STOPS = st.lists(st.text("<>/cal12 ab中", min_size=1, max_size=4), max_size=2).map(tuple)


@given(written(), STOPS, st.none() | st.integers(0, 2), st.lists(st.integers(0, 5), max_size=20))
def test_pieces_join_to_the_completions_text_with_their_authors(
    written: Written, stop: tuple[str, ...], max_calls: int | None, sizes: list[int]
):
    completion = completed(written, stop)
    expected = characters(completion.token_ids, authors_of(completion, max_calls))
    stream, pieces, text = TextStream(protocol(), stop, max_calls), list[Piece](), ""
    for output in outputs_of(completion, sizes):
        for piece in stream.feed(output):
            pieces.append(piece)
            text += piece.text
            assert completion.text.startswith(text), "a piece shows what is cut later"
            assert piece.text or piece.span is not None or piece.completion is not None
    assert text == completion.text
    found = [(character, piece.author) for piece in pieces for character in piece.text]
    assert found == expected[: len(completion.text)]
    assert [piece.completion for piece in pieces] == [*[None] * (len(pieces) - 1), completion]
    announced = [piece.span for piece in pieces if piece.span is not None]
    assert announced == completion.spans[: len(announced)]
    assert stop or announced == completion.spans


def feed(stream: TextStream, text: bytes, source: TokenSource = STUDENT) -> list[tuple[str, str]]:
    """What a stream shows after each byte of a text."""
    tokens = [VOCABULARY.index(bytes([byte])) for byte in text]
    pieces = (piece for token in tokens for piece in stream.feed(RequestOutput(0, [token], [source], [0.0])))
    return [(piece.text, piece.author) for piece in pieces]


def test_a_command_is_held_back_until_it_is_certain():
    stream = TextStream(protocol())
    assert feed(stream, b"ab<call>12</call") == [("a", "student"), ("b", "student")]
    assert feed(stream, b">") == [("<call>12</call>", "command")]
    assert feed(stream, b"<call>1", TEACHER) == [(character, "teacher") for character in "<call>1"]
    assert feed(stream, b"<call>1b") == [("<call>1b", "student")]


def test_a_command_that_stands_as_text_is_the_students():
    stream = TextStream(protocol(), max_calls=1)
    assert feed(stream, b"<<call>1</call>") == [("<", "student"), ("<call>1</call>", "command")]
    assert feed(stream, b"<call>", TEACHER) == [(character, "teacher") for character in "<call>"]
    assert feed(stream, b"<call>2</call>") == [(character, "student") for character in "<call>2</call>"]


def test_the_teachers_text_ends_a_command_that_is_open():
    stream = TextStream(protocol())
    assert feed(stream, b"<call>1") == []
    assert feed(stream, b"2", TEACHER) == [("<call>1", "student"), ("2", "teacher")]


def test_an_empty_span_ends_a_command_that_is_open():
    stream, span = TextStream(protocol()), RelaySpan(7, 7, 9, FinishReason.TEACHER_STOP, 7)
    assert feed(stream, b"<call>1") == []
    assert list(stream.feed(RequestOutput(0, [], [], [], [span]))) == [
        Piece("<call>1", "student"),
        Piece("", "teacher", span),
    ]
    assert "".join(text for text, _ in feed(stream, b"</call>a")) == "</call>a"


def test_half_a_character_is_held_back():
    stream = TextStream(protocol())
    first, *rest = "中".encode()
    assert feed(stream, bytes([first])) == []
    assert feed(stream, bytes(rest), TEACHER) == [("中", "teacher")]
    assert feed(stream, "é".encode()[:1]) == []
    assert feed(stream, b"a") == [("\N{REPLACEMENT CHARACTER}a", "student")]


def test_what_may_begin_a_stop_string_is_held_back():
    stream = TextStream(protocol(), ("aab", "b1"))
    assert feed(stream, b"aaaa") == [("a", "student"), ("a", "student")]
    assert feed(stream, b"2b2") == [("aa2", "student"), ("b2", "student")]


X, Y = FIRST_LETTER, FIRST_LETTER + 1
GREEDY = SamplingParams(30, temperature=0.0)


def new_relay(script: str = "xz<call>2</call>z.<call>3</call>x.") -> Relay:
    """A student that follows the script, and a teacher who always writes y. A prompt is a letter."""
    tokens = spell(script)

    def student(context: tuple[int, ...]) -> Tensor:
        own = [token for token in context[1:] if token != Y]
        return scripted_bias(tokens[len(own)] if len(own) < len(tokens) else EOS, VOCAB_SIZE)

    pair = (student, lambda _: scripted_bias(Y, VOCAB_SIZE))
    engine = relay_engine(*(FakeModel(logits, vocab_size=VOCAB_SIZE) for logits in pair), small_protocol())
    return Relay(engine, lambda prompt_id, token_ids: Prompt(prompt_id, tuple(token_ids)))


def joined(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Texts and authors, neighbours of one author as one."""
    found: list[tuple[str, str]] = []
    for piece in pieces:
        if found and found[-1][1] == piece.author:
            found[-1] = found[-1][0] + piece.text, piece.author
        else:
            found.append((piece.text, piece.author))
    return found


@pytest.mark.parametrize("policy", ["command", FixedPolicy(n=2, every=3), "teacher_free"])
@pytest.mark.parametrize("stop", [(), ("z.",), ("yz", "yx")])
def test_a_stream_shows_what_generate_gives(policy: object, stop: tuple[str, ...]):
    sampling = SamplingParams(30, temperature=0.0, stop=stop)
    [expected] = new_relay().generate([[X]], sampling, policy=policy)
    pieces = list(new_relay().stream([X], sampling, policy=policy))
    assert "".join(piece.text for piece in pieces) == expected.text
    assert pieces[-1].completion == expected
    if policy == "command" and not stop:
        assert joined(pieces)[:5] == [
            ("xz", "student"), ("<call>2</call>", "command"), ("yy", "teacher"), ("z.", "student"),
            ("<call>3</call>", "command"),
        ]  # fmt: skip
        assert len(pieces) > 5


def test_streams_of_one_relay_do_not_lose_each_others_text():
    relay, (expected,) = new_relay(), new_relay().generate([[X]], GREEDY)
    live = {index: relay.stream([X], GREEDY) for index in range(3)}
    texts = dict.fromkeys(live, "")
    while live:
        for index, stream in list(live.items()):
            piece = next(stream, None)
            if piece is None:
                del live[index]
            else:
                texts[index] += piece.text
    assert set(texts.values()) == {expected.text}
    assert not relay.engine.has_unfinished


def test_a_stream_goes_on_when_a_generate_comes_between():
    relay, (expected,) = new_relay(), new_relay().generate([[X]], GREEDY)
    stream = relay.stream([X], GREEDY)
    pieces = list(islice(stream, 2))
    assert relay.generate([[X]], GREEDY) == [expected]
    pieces += stream
    assert "".join(piece.text for piece in pieces) == expected.text
    assert pieces[-1].completion == expected


def test_a_stream_that_is_left_early_aborts_its_request():
    relay = new_relay()
    stream = relay.stream([X], GREEDY)
    assert next(stream).text == "x"
    assert relay.engine.has_unfinished
    stream.close()
    assert not relay.engine.has_unfinished
