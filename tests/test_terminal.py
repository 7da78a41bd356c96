"""Text for a terminal: nothing that others wrote acts on it, and no sentence fills the screen."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.terminal import (
    MAX_SENTENCE_CHARACTERS,
    escape_record,
    escape_terminal,
    one_line,
    print_error,
    quote,
    shorten,
)


@given(st.text(st.characters(categories=["Cc", "Cf", "Cs", "Co", "Zl", "Zp"], exclude_characters="\n\t"), min_size=1))
def test_characters_that_act_on_a_terminal_become_printable_ascii(text):
    escaped = escape_terminal(text)
    assert escaped.isascii()
    assert escaped.isprintable()


def test_ordinary_text_is_left_alone():
    text = "Zürich: 3 × 4 = 12 \\boxed{12}\n\t日本 🙂"
    assert escape_terminal(text) == text


@given(st.text(max_size=200))
def test_a_sentence_is_one_printable_line(text):
    assert not set(one_line(text)) & {"\n", "\r", "\t", "\x1b", "\u2028", "\u202e"}
    assert quote(text).isprintable()


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = f"the key {'x' * 10_000_000} is wrong, do this"
    assert shorten(text, 100).startswith("the key xxx")
    assert shorten(text, 100).endswith("xxx is wrong, do this")
    assert "... (10,000,026 characters) ..." in shorten(text, 100)
    assert len(one_line(text)) < MAX_SENTENCE_CHARACTERS + 50
    assert shorten("short", 5) == "short"
    assert len(quote("\x1b" * 1_000_000)) < 400


def test_log_lines_and_errors_are_escaped(capsys, caplog):
    logger = logging.getLogger("test_terminal")
    logger.addFilter(escape_record)
    logger.warning("left out: %s", "a\x1b[2J\u202eb")
    assert caplog.records[0].message == r"left out: a\x1b[2J\u202eb"
    print_error("a\x1b[2J\nb\ud800")
    assert capsys.readouterr().err == "error: a\\x1b[2J b\\ud800\n"
