"""TextField: a text of a row. Its column, perhaps nested, and the part of it that is wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from typing import Any

from relay_lightning.data.presets import BOXED
from relay_lightning.json_lines import kind
from relay_lightning.rewards.answers import extract_boxed
from relay_lightning.terminal import quote

MAX_DIGITS = 1000
"""A number of more digits before or after its point is not written out."""
MAX_LISTED_COLUMNS = 20
MAX_LISTED_DEPTH = 8
"""Characters of a row that an error message quotes."""
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
"""One step of a nested name: a key, or an index in brackets."""


class TextField:
    """Reads one column. `pattern` is a regular expression with one group, `boxed`, or None for the whole column.

    Raises ValueError naming `key`, the setting that holds the pattern, for one that cannot be used.
    """

    def __init__(self, column: str, pattern: str | None, *, key: str) -> None:
        self.column = column
        self._is_boxed = pattern == BOXED
        self._pattern = None if pattern is None or self._is_boxed else _compile(pattern, key)

    def is_in(self, row: Mapping[str, Any]) -> bool:
        """True if the row has the column."""
        try:
            _pick(row, self.column)
        except LookupError:
            return False
        return True

    def text(self, row: Mapping[str, Any], place: str) -> str | None:
        """The whole column as text, a number in plain decimal notation; None where it holds nothing that can be read.

        That is null, a blank text, and a number that is not finite or too long. Raises ValueError for other types.
        """
        value = _pick(row, self.column)
        if value is None or isinstance(value, str):
            return value if value and value.strip() else None
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return _decimal_text(Decimal(repr(float(value)) if isinstance(value, float) else value))
        raise ValueError(
            f"{place}: column {quote(self.column)} must be a text or a number, but is {kind(value)}"
            f"{_columns_inside(value, self.column)}."
        )

    def extract(self, text: str) -> str | None:
        """What the pattern takes of the column's text, where it matches last; None where it does not."""
        if self._is_boxed:
            return extract_boxed(text) or None
        if self._pattern is None:
            return text
        found = self._pattern.findall(text)
        return (found[-1].strip() or None) if found else None


def require_columns(row: Mapping[str, Any], fields: Sequence[TextField], place: str) -> None:
    """Raises ValueError listing the columns of the row, nested ones in full, if it lacks one of the fields'."""
    if missing := [field.column for field in fields if not field.is_in(row)]:
        raise ValueError(f"{place} lacks {_quoted(missing)}; its columns are {_quoted(_names(row)) or 'none'}.")


def _decimal_text(number: Decimal) -> str | None:
    """1E-5 as 0.00001, and 72.00 as 72; None for a number that cannot be written out."""
    if not number.is_finite() or abs(number.adjusted()) > MAX_DIGITS:
        return None
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _columns_inside(value: Any, column: str) -> str:
    """The columns inside a nested value, as a hint."""
    names = [name for name in _names(value, column) if name != column]
    return f"; inside it are {_quoted(names)}" if names else ""


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key} {quote(pattern)} is not a regular expression: {error}.") from None
    if compiled.groups != 1:
        raise ValueError(
            f"{key} {quote(pattern)} must have one group, around what is wanted, but has {compiled.groups}."
        )
    return compiled


def _pick(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column. Raises LookupError if there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for key, index in _STEP.findall(column):
        if not isinstance(value, Sequence if index else Mapping) or isinstance(value, str):
            raise LookupError(column)
        value = value[int(index) if index else key]
    return value


def _names(value: Any, name: str = "", depth: int = 0) -> Iterator[str]:
    """The columns of a row as a field names them: nested ones in full, of a list its first entry."""
    if isinstance(value, Mapping) and depth < MAX_LISTED_DEPTH:
        for key, inner in value.items():
            yield from _names(inner, f"{name}.{key}" if name else str(key), depth + 1)
    elif isinstance(value, list) and value and depth < MAX_LISTED_DEPTH:
        yield from _names(value[0], f"{name}[0]", depth + 1)
    else:
        yield name


def _quoted(names: Iterable[str]) -> str:
    listed = [quote(name) for name in islice(names, MAX_LISTED_COLUMNS + 1)]
    return ", ".join(listed[:MAX_LISTED_COLUMNS]) + ", ..." * (len(listed) > MAX_LISTED_COLUMNS)
