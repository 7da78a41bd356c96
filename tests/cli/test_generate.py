"""`generate` prints an answer as it is written, and the same text to a terminal and a file."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from relay_lightning import SamplingParams, load_relay
from relay_lightning.commands.generate import QUESTION, print_pieces
from relay_lightning.evaluation.transcript import transcript
from relay_lightning.relay.text_stream import Piece

ANSI = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture(scope="module")
def relay():
    return load_relay(max_num_seqs=1)


def printed(pieces: Iterator[Piece], *, is_terminal: bool) -> str:
    file = io.StringIO()
    print_pieces(pieces, Console(file=file, force_terminal=is_terminal, highlight=False, color_system="standard"))
    return file.getvalue()


@pytest.mark.parametrize("limit", [None, 1])
def test_pieces_print_as_the_transcript_of_the_whole_answer(relay, limit):
    sampling, token_bytes = SamplingParams(160, temperature=0.0), relay.engine.protocol.token_bytes
    (answer,) = relay.generate([QUESTION], sampling, max_call_tokens=limit)
    assert answer.num_calls == 2
    shown = printed(relay.stream(QUESTION, sampling, max_call_tokens=limit), is_terminal=True)
    plain = transcript(answer, token_bytes).plain
    assert ANSI.sub("", shown) == plain + "\n"
    assert plain.count("[1 of ") == (2 if limit == 1 else 0)
    for command in re.findall(r"<call>\d</call>", plain):
        assert f"\x1b[2m{command}\x1b[0m" in shown
    in_file = Console(file=(file := io.StringIO()), highlight=False)
    print_pieces(relay.stream(QUESTION, sampling, max_call_tokens=limit), in_file)
    assert file.getvalue() == transcript(answer, token_bytes, marks_teacher=True).plain + "\n"


def test_a_piece_is_on_the_terminal_before_the_next_one_is_written(relay):
    file, seen = io.StringIO(), []

    def watched() -> Iterator[Piece]:
        for piece in relay.stream(QUESTION, SamplingParams(40, temperature=0.0)):
            seen.append(ANSI.sub("", file.getvalue()))
            yield piece
            if piece.text.strip():
                assert ANSI.sub("", file.getvalue()).endswith(piece.text)

    print_pieces(watched(), Console(file=file, force_terminal=True, highlight=False))
    assert len(set(seen)) > 20


def test_tabs_and_spaces_at_the_end_of_lines_stay_and_control_characters_are_escaped(relay):
    (answer,) = relay.generate(["How many?"], SamplingParams(1, temperature=0.0))
    pieces = [Piece("a\tb  \n", "student"), Piece("\x1b[2J\t", "teacher"), Piece("[red]x ", "student", None, answer)]
    shown = printed(iter(pieces), is_terminal=True)
    assert ANSI.sub("", shown) == "a\tb  \n\\x1b[2J\t[red]x \n"
