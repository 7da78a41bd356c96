"""JSON lines: rows written such that any program can read them, and read back with the place of a damaged one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

_DECODER = json.JSONDecoder()


def json_line(row: Mapping[str, Any]) -> str:
    """The row as a line of JSON that UTF-8 can encode: a lone surrogate becomes its escape sequence."""
    line = json.dumps(row, ensure_ascii=False) + "\n"
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


def parse_row(line: str, place: str, *, decoder: json.JSONDecoder = _DECODER, hint: str = "") -> dict[str, Any]:
    """The row of a line that was decoded as UTF-8 with `surrogateescape`.

    Raises ValueError naming `place` for a line that is not UTF-8, not JSON or not an object; `hint` ends its sentence.
    """
    if not is_encodable(line) or "\0" in line:
        raise ValueError(f"{place} is not UTF-8 text{hint}.")
    try:
        row = decoder.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not valid JSON ({error.msg} at character {error.colno}){hint}.") from None
    except RecursionError:
        raise ValueError(f"{place} is not valid JSON that can be read: it is nested too deeply.") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise ValueError(f"{place} holds a number that cannot be read: {error}.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place} must be a JSON object, but is {kind(row)}{hint}.")
    return row


def read_rows(path: Path, *, hint: str = "") -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file that this package wrote, each with the position in bytes where its line ends.

    A last line without its line feed, which a kill left unfinished, is no row. Raises ValueError as `parse_row` does.
    """
    stop = 0
    with path.open("rb") as lines:
        for line_number, line in enumerate(lines, start=1):
            if line.endswith(b"\n"):
                stop += len(line)
                yield stop, parse_row(line.decode("utf-8", "surrogateescape"), f"{path}:{line_number}", hint=hint)


def is_encodable(text: str) -> bool:
    """True if the text has no lone surrogate, which no file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def kind(value: Any) -> str:
    """What a value is, in the words of JSON, for a sentence."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    words = {str: "a text", int: "a number", float: "a number", Decimal: "a number", list: "a list", dict: "an object"}
    return words.get(type(value), f"a {type(value).__name__}")
