"""TextField: a text of a row. Its column, perhaps nested, and the part of it that is wanted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from relay_lightning.data.presets import BOXED
from relay_lightning.rewards.answers import extract_boxed

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
        """Whether the row has the column."""
        try:
            _pick(row, self.column)
        except LookupError:
            return False
        return True

    def text(self, row: Mapping[str, Any], place: str) -> str:
        """The whole column as text; a number is written as JSON writes it. Raises ValueError for anything else."""
        value = _pick(row, self.column)
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            return json.dumps(value)
        found = json.dumps(value, ensure_ascii=False, default=str)
        raise ValueError(f"{place}: column '{self.column}' must be a text or a number, but is {found}.")

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


def _compile(pattern: str, key: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{key} {pattern!r} is not a regular expression: {error}.") from None
    if compiled.groups != 1:
        raise ValueError(f"{key} {pattern!r} must have one group, around what is wanted, but has {compiled.groups}.")
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


def _names(value: Any, name: str = "") -> Iterator[str]:
    """The columns of a row as a field names them: nested ones in full, of a list its first entry."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _names(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        yield from _names(value[0], f"{name}[0]")
    else:
        yield name


def _quoted(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)
