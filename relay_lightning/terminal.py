"""Text for a terminal: whatever a model, a file or a user wrote is escaped, and shortened, before it is printed."""

from __future__ import annotations

import logging
import sys
from unicodedata import category

HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Control, format (text direction, zero width), surrogate, private-use, and separator characters: what could move the
cursor, hide text or reorder it."""
MAX_VALUE_CHARACTERS = 80
"""Characters of a value that is quoted in a sentence."""
MAX_SENTENCE_CHARACTERS = 2000
"""Characters of a whole sentence, about a screen."""


def escape_terminal(text: str) -> str:
    """The text with every character that could act on a terminal written out as an escape sequence.

    Line feeds and tabs stay.
    """
    return "".join(
        char if char in "\n\t" or category(char) not in HIDDEN_CATEGORIES else char.encode("unicode_escape").decode()
        for char in text
    )


def shorten(text: str, max_characters: int = MAX_SENTENCE_CHARACTERS) -> str:
    """The text, with what exceeds `max_characters` left out of its middle."""
    if len(text) <= max_characters:
        return text
    head = max_characters // 2
    return f"{text[:head]} ... ({len(text):,} characters) ... {text[head - max_characters :]}"


def quote(value: str) -> str:
    """The value in quotes, escaped and shortened, as a sentence names it."""
    return repr(shorten(value, MAX_VALUE_CHARACTERS))


def one_line(text: str) -> str:
    """The text shortened and escaped, on one line."""
    return escape_terminal(" ".join(shorten(text).replace("\t", " ").splitlines()))


def print_line(text: str) -> None:
    """Prints one line of a command's result."""
    print(one_line(text))


def print_error(sentence: str) -> None:
    """Prints the sentence that a refused command ends in."""
    sys.stderr.write(f"error: {one_line(sentence)}\n")  # in one piece: several processes may write theirs at once


def escape_record(record: logging.LogRecord) -> bool:
    """A logging filter that lets every record pass, its message escaped and shortened."""
    record.msg, record.args = escape_terminal(shorten(record.getMessage())), None
    return True
