"""Completions as terminal text: colours by author, nothing a model wrote reaches the terminal raw."""

import io
import re
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from relay_lightning.evaluation.transcript import STYLES, Transcriber, authored_runs, transcript
from relay_lightning.types import Completion, FinishReason, RelaySpan, TokenSource

STUDENT, TEACHER = TokenSource.STUDENT, TokenSource.TEACHER


def completion(token_ids: list[int], sources: list[TokenSource], spans: list[RelaySpan]) -> Completion:
    zeros = [0.0] * len(token_ids)
    return Completion(0, 0, token_ids, sources, zeros, zeros, spans, FinishReason.STOP)


BYTE_TOKENS = [bytes([value]) for value in range(256)]
"""A vocabulary in which a token is a byte."""


def test_runs_name_student_command_and_teacher_when_a_call_was_made():
    done = completion(
        list(b"ab<c>XYd"), [STUDENT] * 5 + [TEACHER] * 2 + [STUDENT], [RelaySpan(5, 7, 2, FinishReason.DELIVERED, 2)]
    )
    assert [(author, bytes(ids)) for author, ids in authored_runs(done)] == [
        ("student", b"ab"),
        ("command", b"<c>"),
        ("teacher", b"XY"),
        ("student", b"d"),
    ]
    text = transcript(done, BYTE_TOKENS)
    assert text.plain == "ab<c>XYd"
    assert {text.plain[span.start : span.end]: span.style for span in text.spans} == {
        "<c>": STYLES["command"],
        "XY": STYLES["teacher"],
    }


def call(num_delivered: int, num_requested: int, num_command_tokens: int = 3) -> Completion:
    """`ab`, a command, the teacher's `X`s, `d`."""
    command = b"<9>"[:num_command_tokens]
    start = 2 + len(command)
    text = b"ab" + command + b"X" * num_delivered + b"d"
    sources = [STUDENT] * start + [TEACHER] * num_delivered + [STUDENT]
    span = RelaySpan(start, start + num_delivered, num_requested, FinishReason.DELIVERED, 2)
    return completion(list(text), sources, [span])


@pytest.mark.parametrize(
    ("done", "shown"),
    [
        (call(3, 9), "ab<9>[3 of 9]XXXd"),
        (call(0, 9), "ab<9>[0 of 9]d"),
        (call(9, 9), "ab<9>XXXXXXXXXd"),
        (call(3, 9, num_command_tokens=0), "abXXXd"),  # a router hands over without a command
    ],
)
@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_cut_call_says_how_many_tokens_were_delivered(done, shown, is_terminal):
    text = transcript(done, BYTE_TOKENS)
    assert text.plain == shown
    output = io.StringIO()
    Console(file=output, force_terminal=is_terminal, highlight=False, width=200).print(text)
    assert re.sub(r"\x1b\[[\d;]*m", "", output.getvalue()) == shown + "\n"


def test_each_of_two_commands_in_a_row_has_its_own_note():
    spans = [RelaySpan(3, 3, 9, FinishReason.TEACHER_STOP, 0), RelaySpan(6, 7, 8, FinishReason.LENGTH, 3)]
    done = completion(list(b"<9><8>X"), [STUDENT] * 6 + [TEACHER], spans)
    assert transcript(done, BYTE_TOKENS).plain == "<9>[0 of 9]<8>[1 of 8]X"


def test_markup_and_control_sequences_stay_visible_when_a_model_writes_them():
    evil = "[red]x[/red]\x1b[2J\x07\r\u202eabc\u2028\x9b31m"
    done = completion(list(evil.encode()), [STUDENT] * len(evil.encode()), [])
    output = io.StringIO()
    Console(file=output, force_terminal=True, width=200).print(transcript(done, BYTE_TOKENS))
    shown = output.getvalue()
    assert "[red]x[/red]" in shown
    assert r"\x1b[2J" in shown
    assert r"\u202e" in shown
    assert not set(shown) & set("\x1b\x07\r\u202e\u2028\x9b")


def test_special_tokens_are_not_shown_and_broken_characters_are_marked():
    done = completion([*b"ab", 0xC3, 256], [STUDENT] * 4, [])
    assert transcript(done, [*BYTE_TOKENS, None]).plain == "ab\ufffd"


def styled(text: Text) -> list[tuple[str, str]]:
    """Every character with its style."""
    styles = [str(text.style)] * len(text.plain)
    for span in text.spans:
        styles[span.start : span.end] = [str(span.style)] * (span.end - span.start)
    return list(zip(text.plain, styles, strict=True))


RUNS = st.lists(st.tuples(st.sampled_from(list(STYLES)[:3]), st.text("<>/techarx\n\x1b", min_size=1, max_size=20)))


@given(RUNS, st.booleans())
def test_pieces_make_the_transcript_of_whole_runs_wherever_they_are_cut(runs, marks_teacher):
    """A written tag is escaped though its pieces are not, and a run of the teacher is marked once."""
    whole, pieces = Text(), Text()
    transcriber = Transcriber(marks_teacher=marks_teacher)
    merged = [(author, "".join(text for _, text in group)) for author, group in groupby(runs, key=lambda run: run[0])]
    for author, text in merged:
        whole.append_text(transcriber.write(text, author))
    whole.append_text(transcriber.end_run())
    for author, text in runs:
        for char in text:
            pieces.append_text(transcriber.write(char, author))
    pieces.append_text(transcriber.end_run())
    assert styled(pieces) == styled(whole)
    if marks_teacher:
        assert whole.plain.count("<teacher>") == sum(author == "teacher" for author, _ in merged)


def test_a_tag_that_a_model_wrote_is_escaped_in_pieces_too():
    transcriber = Transcriber(marks_teacher=True)
    pieces = [transcriber.write(piece, "student").plain for piece in ("a <te", "ach", "er> b <", "c")]
    assert pieces == ["a ", "", r"\x3cteacher> b ", "<c"]
    assert transcriber.write("X", "teacher").plain + transcriber.end_run().plain == "<teacher>X</teacher>"
