"""The command automaton is held to the regular expression on decoded bytes, over vocabularies of every family."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from relay_kernels.relay_step.commands import MAX_REQUEST, CommandTable, advance_commands
from small_vocabulary import small_protocol

from relay_lightning.relay.protocol import CallProtocol, CommandSpan, CompiledProtocol

PATTERN = re.compile(rb"<call>[ \t\n\r\f\v]*([0-9]+)[ \t\n\r\f\v]*</call>")
PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SPECIAL = 256


def reference_scan(token_bytes: list[bytes | None], token_ids: list[int]) -> tuple[list[CommandSpan], int]:
    """(valid calls, malformed tags): the regular expression on what has been written, asked again after every token."""
    spans, opened = [], 0
    data, origin = b"", []
    for index, token in enumerate([*token_ids, None]):
        piece = None if token is None else token_bytes[token]
        if piece is None:
            opened += data.count(b"<call>")
            data, origin = b"", []
            continue
        data += piece
        origin += [(index, offset) for offset in range(len(piece))]
        match = next((match for match in PATTERN.finditer(data) if int(match[1]) > 0), None)
        if match:
            (start, start_byte), (last, last_byte) = origin[match.start()], origin[match.end() - 1]
            spans.append(CommandSpan(start, last + 1, start_byte, last_byte + 1, min(int(match[1]), MAX_REQUEST)))
            opened += data[: match.end()].count(b"<call>")
            data, origin = b"", []
    return spans, opened - len(spans)


def run_table(table: CommandTable, rows: list[list[int]], *, padding: int) -> list[list[tuple[int, int]]]:
    """(index, n) of every call of every row, by `advance_commands` on all rows at once, right-padded."""
    state = torch.zeros(len(rows), dtype=torch.int64)
    n = torch.zeros_like(state)
    calls: list[list[tuple[int, int]]] = [[] for _ in rows]
    for index in range(max(map(len, rows), default=0)):
        tokens = torch.tensor([row[index] if index < len(row) else padding for row in rows])
        state, n, is_call = advance_commands(table, state, n, tokens)
        for row in is_call.nonzero()[:, 0].tolist():
            assert state[row] == 0
            if index < len(rows[row]):
                calls[row].append((index, int(n[row])))
    return calls


def as_calls(spans: list[CommandSpan]) -> list[tuple[int, int]]:
    return [(span.stop - 1, span.n) for span in spans]


def scan_text(protocol: CompiledProtocol, text: str) -> list[tuple[int, int, int]]:
    """(start, stop, n) of the calls in single-byte tokens."""
    return [(span.start, span.stop, span.n) for span in protocol.scan(list(text.encode()))]


# --- the automaton equals the regular expression ---


@PROPERTY
@given(rng=st.randoms(use_true_random=False))
def test_scan_and_malformed_count_equal_the_regular_expression_on_random_streams(vocabulary, rng):
    stream = vocabulary.random_stream(rng)
    spans, num_malformed = reference_scan(vocabulary.compiled.token_bytes, stream)
    assert vocabulary.compiled.scan(stream) == spans
    assert vocabulary.compiled.count_malformed(stream) == num_malformed


def test_table_equals_the_regular_expression_on_a_batch_of_random_streams(vocabulary):
    rng = Random(0)
    compiled = vocabulary.compiled
    streams = [vocabulary.random_stream(rng) for _ in range(400)]
    expected = [as_calls(reference_scan(compiled.token_bytes, stream)[0]) for stream in streams]
    assert run_table(compiled.table, streams, padding=0) == expected
    assert sum(map(bool, expected)) >= 100, "too few of the random streams call"


def test_every_short_combination_of_tag_pieces_equals_the_regular_expression(bytes_protocol):
    pieces = ("<call>", "</call>", "<", "call>", "/", "0", "7 ")
    for length in range(1, 6):
        for combination in itertools.product(pieces, repeat=length):
            stream = list("".join(combination).encode())
            expected = reference_scan(bytes_protocol.token_bytes, stream)
            assert (bytes_protocol.scan(stream), bytes_protocol.count_malformed(stream)) == expected, combination


@PROPERTY
@given(rng=st.randoms(use_true_random=False))
def test_mask_holds_exactly_the_tokens_that_would_complete_a_call(vocabulary, rng):
    compiled = vocabulary.compiled
    stream = vocabulary.random_stream(rng)[:12]
    spans = compiled.scan(stream)
    prefix = stream[spans[-1].stop :] if spans else stream
    state = n = torch.zeros(1, dtype=torch.int64)
    for token in prefix:
        state, n, _ = advance_commands(compiled.table, state, n, torch.tensor([token]))
    mask = compiled.table.is_complete[state]
    assert mask.shape == (1, compiled.vocab_size)
    candidates = {*mask[0].nonzero()[:20, 0].tolist(), *(rng.choice(vocabulary.nasty_ids) for _ in range(20))}
    for token in candidates:
        completes = bool(reference_scan(compiled.token_bytes, [*prefix, token])[0])
        assert bool(mask[0, token]) == completes, (prefix, token)


def opens_in(token_bytes: list[bytes | None], token_ids: list[int], tag: bytes = b"<call>") -> bool:
    """True if the last token completes an opening tag, at one of its bytes up to the one that completes a call.

    A search in the bytes since the last special token; `token_ids` hold no call before the last token.
    """
    pieces: list[bytes] = []
    for token in token_ids:
        piece = token_bytes[token]
        pieces = [] if piece is None else [*pieces, piece]
    data = b"".join(pieces)
    call = next((match for match in PATTERN.finditer(data) if int(match[1]) > 0), None)
    start = len(data) - len(pieces[-1] if pieces else b"") - len(tag) + 1
    return bool(pieces) and tag in data[max(start, 0) : call.end() if call else None]


@PROPERTY
@given(rng=st.randoms(use_true_random=False))
def test_openings_are_exactly_the_tokens_that_would_complete_an_open_tag(vocabulary, rng):
    compiled = vocabulary.compiled
    stream = vocabulary.random_stream(rng)[:12]
    spans = compiled.scan(stream)
    prefix = stream[spans[-1].stop :] if spans else stream
    check_openings(compiled, prefix, [rng.choice(vocabulary.nasty_ids) for _ in range(30)])


def test_openings_of_a_small_vocabulary_are_found_behind_every_short_text():
    compiled = small_protocol()
    token_ids = range(compiled.vocab_size)
    short = [[], *([a] for a in token_ids), *([a, b] for a in token_ids for b in token_ids)]
    num_openings = sum(check_openings(compiled, prefix, token_ids) for prefix in short if not compiled.scan(prefix))
    assert num_openings > len(short)


def check_openings(compiled: CompiledProtocol, prefix: list[int], candidates: Sequence[int]) -> int:
    """Holds the table's openings behind `prefix` to the search; returns how many of all tokens open."""
    state = n = torch.zeros(1, dtype=torch.int64)
    for token in prefix:
        state, n, _ = advance_commands(compiled.table, state, n, torch.tensor([token]))
    is_opening = compiled.table.is_opening[state[0]]
    token_bytes = compiled.token_bytes
    for token in {*is_opening.nonzero()[:20, 0].tolist(), *candidates}:
        assert bool(is_opening[token]) == opens_in(token_bytes, [*prefix, token]), (prefix, token)
    return int(is_opening.sum())


def test_student_that_never_opens_a_tag_never_calls(vocabulary):
    rng = Random(2)
    table = vocabulary.compiled.table
    for _ in range(100):
        state = n = torch.zeros(1, dtype=torch.int64)
        written: list[int] = []
        for token in vocabulary.random_stream(rng):
            if not table.is_opening[state, token]:
                state, n, is_call = advance_commands(table, state, n, torch.tensor([token]))
                written.append(token)
                assert not is_call
        assert vocabulary.compiled.count_malformed(written) == 0


def test_table_of_fewer_ids_has_the_columns_of_those(bytes_protocol):
    table, narrow = bytes_protocol.table, bytes_protocol.table_of(99)
    for name in ("next_state", "is_complete", "is_opening", "digit_action"):
        assert torch.equal(getattr(narrow, name), getattr(table, name)[:, :99])
        assert getattr(narrow, name).is_contiguous()
    assert bytes_protocol.table_of(257) is table


def test_student_that_obeys_the_mask_never_calls(vocabulary):
    rng = Random(1)
    table = vocabulary.compiled.table
    for _ in range(100):
        state = n = torch.zeros(1, dtype=torch.int64)
        written: list[int] = []
        for token in vocabulary.random_stream(rng):
            if not table.is_complete[state, token]:
                state, n, _ = advance_commands(table, state, n, torch.tensor([token]))
                written.append(token)
        assert reference_scan(vocabulary.compiled.token_bytes, written)[0] == []


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_advance_keeps_dtypes_and_inputs(bytes_protocol, dtype):
    state, n = torch.zeros(2, dtype=dtype), torch.zeros(2, dtype=torch.int32)
    new_state, new_n, is_call = advance_commands(bytes_protocol.table, state, n, torch.tensor([ord("<"), ord("x")]))
    assert (new_state.dtype, new_n.dtype, is_call.dtype) == (dtype, torch.int32, torch.bool)
    assert new_state[0] != 0
    assert new_state[1] == 0
    assert state.tolist() == [0, 0]
    assert advance_commands(bytes_protocol.table, state[:0], n[:0], torch.zeros(0, dtype=torch.int64))[0].shape == (0,)


def test_table_of_a_real_vocabulary_is_small(vocabulary):
    table = vocabulary.compiled.table
    assert table.num_states == 16
    assert table.next_state.dtype == torch.uint8
    assert len(table.digit_scale) == len(table.digit_value) < 100
    assert table.to("cpu").is_complete.equal(table.is_complete)


# --- what is a call ---


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<call>128</call>", [(0, 16, 128)]),
        ("so <call>5</call>.", [(3, 17, 5)]),
        ("<call> \t\n7\r\f\v</call>", [(0, 20, 7)]),
        ("<call>007</call>", [(0, 16, 7)]),
        ("<call>1</call><call>2</call>", [(0, 14, 1), (14, 28, 2)]),
        ("<<call>3</call>", [(1, 15, 3)]),
        ("<call<call>3</call>", [(5, 19, 3)]),
        ("<call><call>3</call>", [(6, 20, 3)]),
        ("<call>3<call>4</call>", [(7, 21, 4)]),
        ("<call>3</call<call>4</call>", [(13, 27, 4)]),
        ("<call>3</<call>4</call>", [(9, 23, 4)]),
        ("<call>0</call><call>9</call>", [(14, 28, 9)]),
        ("<call>3</call></call>", [(0, 14, 3)]),
    ],
)
def test_call_is_found_when_tags_are_whole_repeated_or_nested(bytes_protocol, text, calls):
    assert scan_text(bytes_protocol, text) == calls


@pytest.mark.parametrize(
    ("text", "num_malformed"),
    [
        ("plain text, 3 < 4 > 2", 0),
        ("</call>", 0),
        ("<call", 0),
        ("<call>0</call>", 1),
        ("<call>000</call>", 1),
        ("<call></call>", 1),
        ("<call> </call>", 1),
        ("<call>12", 1),
        ("<call>12</call", 1),
        ("<call>1 2</call>", 1),
        ("<call>0 2</call>", 1),
        ("<call>-3</call>", 1),
        ("<call>3.5</call>", 1),
        ("<call>three</call>", 1),
        ("<call>3</ call>", 1),
        ("<call>3 tokens</call>", 1),
        ("<call>\u00a03</call>", 1),
        ("<call>\u0663</call>", 1),
        ("<Call>3</Call>", 0),
        ("<call><call><call>", 3),
        ("<call>3<call>4", 2),
    ],
)
def test_text_is_no_call_but_counted_when_a_tag_came_to_nothing(bytes_protocol, text, num_malformed):
    assert scan_text(bytes_protocol, text) == []
    assert bytes_protocol.count_malformed(list(text.encode())) == num_malformed


def test_malformed_tags_are_counted_apart_from_the_valid_calls_around_them(bytes_protocol):
    text = "<call>0</call> <call><call>3</call> <call>4</call> <call>"
    assert [n for *_, n in scan_text(bytes_protocol, text)] == [3, 4]
    assert bytes_protocol.count_malformed(list(text.encode())) == 3


@pytest.mark.parametrize("digits", ["9" * 20, "1" + "0" * 9, "1" + "0" * 5000, "999999999"])
def test_request_saturates_when_the_number_is_huge(bytes_protocol, digits):
    stream = list(f"<call>{digits}</call>".encode())
    assert [span.n for span in bytes_protocol.scan(stream)] == [MAX_REQUEST]
    assert run_table(bytes_protocol.table, [stream], padding=0) == [[(len(stream) - 1, MAX_REQUEST)]]


def test_request_is_exact_when_it_is_just_below_saturation(bytes_protocol):
    stream = list(b"<call>000123456789</call>")
    assert [span.n for span in bytes_protocol.scan(stream)] == [123_456_789]
    assert run_table(bytes_protocol.table, [stream], padding=0) == [[(len(stream) - 1, 123_456_789)]]


def test_request_saturates_when_single_tokens_hold_more_digits_than_an_integer():
    compiled = CallProtocol().compile_bytes([b"<call>", b"0" * 40, b"7" * 40, b"5", b"</call>"])
    streams = [[0, 1, 3, 4], [0, 2, 4], [0, 3, 1, 4], [0, 3, 2, 3, 4], [0, 1, 1, 4]]
    huge = [[(len(stream) - 1, MAX_REQUEST)] for stream in streams[1:4]]
    assert run_table(compiled.table, streams, padding=3) == [[(3, 5)], *huge, []]


def test_number_of_an_abandoned_command_does_not_leak_into_the_next():
    compiled = CallProtocol().compile_bytes([b"<call>12", b"<call>34", b"5", b"</call>", b"12x<call>6"])
    streams = [[0, 1, 3], [0, 1, 2, 3], [0, 4, 2, 3], [0, 3, 1, 3], [4, 2, 2, 3]]
    calls = run_table(compiled.table, streams, padding=2)
    assert calls == [[(2, 34)], [(3, 345)], [(3, 65)], [(1, 12), (3, 34)], [(3, 655)]]


@pytest.mark.parametrize("at", range(1, 14))
def test_special_token_inside_a_tag_resets_the_automaton(bytes_protocol, at):
    stream = list(b"<call>3</call>")
    assert bytes_protocol.scan([*stream[:at], SPECIAL, *stream[at:]]) == []
    assert bytes_protocol.scan([SPECIAL, *stream, SPECIAL]) == [CommandSpan(1, 15, 0, 1, 3)]
    assert bytes_protocol.count_malformed([*stream[:at], SPECIAL, *stream[at:]]) == int(at >= 6)


@pytest.mark.parametrize("at", range(1, 14))
def test_tag_cut_by_a_hand_over_is_no_call_when_each_segment_starts_afresh(bytes_protocol, at):
    stream = list(b"<call>3</call>")
    assert bytes_protocol.scan(stream[:at]) == bytes_protocol.scan(stream[at:]) == []


def test_bytes_behind_the_close_tag_are_not_read_when_they_share_its_token():
    compiled = CallProtocol().compile_bytes([b"<call>", b"5", b"</call><call>", b"</call>", b"0</call><call>"])
    assert as_calls(compiled.scan([0, 1, 2, 1, 3])) == [(2, 5)]
    assert compiled.count_malformed([0, 1, 2, 1, 3]) == compiled.count_malformed([0, 1, 2]) == 0
    assert as_calls(compiled.scan([0, 4, 1, 3])) == [(3, 5)], "a command for zero tokens is text, and reading goes on"
    assert compiled.count_malformed([0, 4, 1, 3]) == 1


# --- the teacher's view ---


@PROPERTY
@given(rng=st.randoms(use_true_random=False))
def test_stripping_cuts_out_the_commands_and_keeps_whole_tokens(vocabulary, rng):
    compiled = vocabulary.compiled
    stream = vocabulary.random_stream(rng)
    spans = compiled.scan(stream)
    stripped = iter(compiled.strip_commands(stream, spans))
    position = 0
    for span in spans:
        assert list(itertools.islice(stripped, span.start - position)) == stream[position : span.start]
        head = compiled.token_bytes[stream[span.start]][: span.start_byte]
        tail = compiled.token_bytes[stream[span.stop - 1]][span.stop_byte :]
        for remainder in (head, tail):
            said = b""
            while len(said) < len(remainder):
                said += compiled.token_bytes[next(stripped)]
            assert said == remainder
        position = span.stop
    assert list(stripped) == stream[position:]


def test_stripped_bytes_equal_the_regular_expression_when_every_token_is_a_byte(bytes_protocol):
    text = "é <call>0</call><call> 5 </call>中<call>3<call>4</call>"
    stream = list(text.encode())
    stripped = bytes_protocol.strip_commands(stream, bytes_protocol.scan(stream))
    assert bytes(stripped).decode() == CallProtocol().strip(text) == "é <call>0</call>中<call>3"


def test_straddling_tokens_of_a_real_vocabulary_leave_their_text_behind(get_vocabulary):
    qwen = get_vocabulary("qwen")
    stream = qwen.tokenizer.encode("Let x.<call>128</call>. So?<call>\n3</call>?\n").ids
    assert [qwen.compiled.token_bytes[token] for token in stream[2:11:8]] == [b".<", b">."], "the tag's edges straddle"
    spans = qwen.compiled.scan(stream)
    assert [(span.start_byte, span.stop_byte, span.n) for span in spans] == [(1, 1, 128), (1, 1, 3)]
    pieces = ["Let x", ".", ".", " So", "?", "?\n"]
    expected = [token for piece in pieces for token in qwen.tokenizer.encode(piece).ids]
    assert qwen.compiled.strip_commands(stream, spans) == expected


def test_both_edges_are_spelled_alone_when_one_token_holds_the_whole_command():
    compiled = CallProtocol().compile_bytes([b"a<call>5</call>b", b"ab", b"a", b"b"])
    (span,) = compiled.scan([1, 0, 1])
    assert span == CommandSpan(1, 2, 1, 15, 5)
    assert compiled.strip_commands([1, 0, 1], [span]) == [1, 2, 3, 1]


def test_remainder_is_spelled_by_the_tokenizer_unless_that_says_something_else():
    token_bytes = [b"ab<", b"call>5</call>", b"ab", b"a", b"b", b" ab", b"\xe2<", b"\xe2"]
    stream = [0, 1]
    encodings = {"ab": [3, 4]}
    compiled = CallProtocol().compile_bytes(token_bytes, lambda text: encodings.get(text, [len(token_bytes)]))
    assert compiled.strip_commands(stream, compiled.scan(stream)) == [3, 4]
    encodings["ab"] = [5]
    assert compiled.strip_commands(stream, compiled.scan(stream)) == [2], "SentencePiece puts a space before a text"
    assert compiled.strip_commands([6, 1], compiled.scan([6, 1])) == [7], "half a character is spelled by its byte"


def test_remainder_is_left_out_when_no_token_can_say_it():
    compiled = CallProtocol().compile_bytes([b"?a<call>", b"5</call>", b"a"])
    assert compiled.strip_commands([0, 1], compiled.scan([0, 1])) == [2]


# --- the protocol itself ---


def test_strip_removes_valid_calls_only_when_given_text():
    text = "a<call>1</call>b<call>0</call><call></call>c <call>\t12\n</call>d<call>5\u00a0</call>"
    assert CallProtocol().strip(text) == "ab<call>0</call><call></call>c d<call>5\u00a0</call>"


def test_formatted_command_is_read_back(bytes_protocol):
    assert [span.n for span in bytes_protocol.scan(list(CallProtocol().format(100).encode()))] == [100]


@pytest.mark.parametrize("tags", [("[", "]"), ("[[a", "[[/a"), ("aa", "aa/"), ("?", "?"), ("a[a", "a[a[")])
def test_other_tags_work_the_same_when_they_share_a_prefix_or_overlap_themselves(tags):
    compiled = CallProtocol(*tags).compile_bytes([bytes([byte]) for byte in range(128)])
    pattern = re.compile(r" *0*([1-9][0-9]*) *".join(re.escape(tag) for tag in tags))
    rng = Random(0)
    texts = ["".join(rng.choices([*tags, *tags, *"[a/?0149 "], k=rng.randint(0, 30))) for _ in range(300)]
    calls = [[(match.end() - 1, int(match[1])) for match in pattern.finditer(text)] for text in texts]
    assert sum(map(bool, calls)) >= 20, "too few of the random texts call"
    streams = [list(text.encode()) for text in texts]
    assert [as_calls(compiled.scan(stream)) for stream in streams] == calls
    assert run_table(compiled.table, streams, padding=0) == calls


@pytest.mark.parametrize("tag", ["", "b 1", "2", "\n"])
def test_tags_are_refused_by_name_when_they_are_empty_or_hold_digits_or_space(tag):
    with pytest.raises(ValueError, match="open_tag"):
        CallProtocol(open_tag=tag)
    with pytest.raises(ValueError, match="close_tag"):
        CallProtocol(close_tag=tag)


def test_tags_are_refused_when_the_automaton_would_not_fit():
    with pytest.raises(ValueError, match="shorter tags"):
        CallProtocol("<" + "x" * 300 + ">").compile_bytes([b"a"])
