"""Typed values of answers: what a text in plain notation stands for, read without a computer algebra system.

`read_values` is the parser. Some texts have two readings (`1,450` is a number or a pair), so it returns a list.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeGuard

from relay_lightning.rewards.formula import exact_value
from relay_lightning.rewards.notation import plain_notation, without_marks
from relay_lightning.rewards.units import Unit, read_unit, split_unit


@dataclass(frozen=True, slots=True)
class Number:
    """A rational number, exactly."""

    value: Fraction
    digits: int = 0
    """Significant digits of one that is written as a decimal with a point, else 0."""
    unit: Unit | None = None
    is_percent: bool = False
    base: int = 10
    """The base of the digits it is written in, `42_7`."""


@dataclass(frozen=True, slots=True)
class Expression:
    """Anything in formulas that is no rational number, left to the computer algebra system."""

    text: str
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """Words, compared as such."""

    words: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The letter of an option, perhaps with the option's text."""

    letter: str
    rest: str = ""


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day or a duration: hours, minutes, perhaps seconds."""

    parts: tuple[int, ...]
    half: str = ""
    """ "a", "p" or nothing."""


@dataclass(frozen=True, slots=True)
class Ratio:
    parts: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Items:
    """Several values. `kind` is how they are enclosed: list (bare), set {}, tuple (), array []."""

    items: tuple[Value, ...]
    kind: str
    is_conjunction: bool = False
    """Joined by "and" or "or", which says that their order does not matter."""


@dataclass(frozen=True, slots=True)
class Interval:
    low: Value
    high: Value
    is_left_closed: bool
    is_right_closed: bool
    name: str = ""
    """The variable of one that is written as an inequality."""


@dataclass(frozen=True, slots=True)
class Union:
    parts: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """`name = value`, or any other equation; a chain keeps its first and last side."""

    left: str
    right: Value
    text: str


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Neither words nor formulas."""


Value = Number | Expression | Text | Choice | Clock | Ratio | Items | Interval | Union | Equation | Matrix | Unreadable

MAX_DEPTH = 8
"""Brackets in brackets beyond this are left to the computer algebra system."""

MAX_BRACKETS = 40
"""Answers with more brackets in brackets are not read at all."""
MAX_ITEMS = 200
"""Longer lists are not read."""

_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:,\d{3})+)(?![\d]|,\d)")
_OPENING, _CLOSING = ("(", "{", "[", "\\{", "\\langle", "\\lfloor", "\\lceil"), (")", "}", "]", "\\}", "\\rangle")
_BRACKETS = re.compile(r"\\(?:[{}]|langle|rangle|lfloor|rfloor|lceil|rceil|begin|end)|[()\[\]{}]")
_AND = r"\s*,?\s*⟦(?:and|or)⟧\s*|\s*\\(?:lor|land|vee|wedge)(?![a-zA-Z])\s*"
_PREFIX = re.compile(
    r"(?:\s*⟦(?:the|final|correct|answer|option|choice|is|therefore|so|thus)⟧|\s*:|\s*\\(?:approx|therefore)\b)+\s*",
    re.I,
)
_OPTION = re.compile(r"\(?\s*⟦?([A-Za-z])⟧?\s*(?:\)|\.(?!\d)|:)\s*(.*)|⟦?([A-Z])⟧?|⟦([a-z])⟧", re.DOTALL)
_DATE = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}[-/]\d{1,2}[-/]\d{4}")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:([ap])\.?\s*m\.?)?(?:\s*[a-z ]+)?", re.I)
_BASE = re.compile(r"\(?(\d[0-9A-F]*)\)?\s*_\s*\{?\s*\(?(\d{1,2}|⟦[a-z]+⟧)\)?\s*\}?")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"eleven": 11, "twelve": 12, "sixteen": 16, "hex": 16}
_DECIMAL = re.compile(r"-?\s*(\d*)\.(\d*)")
_PLAIN_NUMBER = re.compile(r"[-+]?(\d+)(?:\.(\d+))?", re.ASCII)
_MATRIX = re.compile(r"\\begin\s*\{([pbBv]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\s*\{\1\}", re.DOTALL)
_RELATION = re.compile(r"\\(?:le|ge|ne|approx|equiv|in)(?![a-zA-Z])|[<>=]")
_NAME = re.compile(
    r"(?:[a-zA-Z]|\\[a-zA-Z]+|⟦[^⟧]*⟧)'*(?:\s*_\s*(?:\{[^{}]*\}|\w))?\s*(?:\(\s*[a-zA-Z]\s*(?:,\s*[a-zA-Z]\s*)*\))?"
)


def read_values(answer: str, *, is_reference: bool) -> list[Value]:
    """The readings of an answer in any notation, the likeliest first.

    A reference is taken by its word: `(1,450)` is a point there, and the m of `6 m` a variable.
    """
    plain = plain_notation(answer)
    if _depth(plain) > MAX_BRACKETS:
        return [Unreadable()]
    plain = _trimmed(plain)
    prefix = _PREFIX.match(plain)
    if prefix and prefix.end() < len(plain):
        plain = _trimmed(plain[prefix.end() :])
    if option := _OPTION.fullmatch(plain):
        letter = next(group for group in (option[1], option[3], option[4]) if group)
        return [Choice(letter, (option[2] or "").strip()), *([] if letter.isupper() else _readings(plain))]
    sides = re.split(r"\\approx(?![a-zA-Z])", plain)
    readings = [value for side in sides for value in _number_or_list(side.strip(), is_reference)]
    if isinstance(readings[0], Number | Expression) and _has_letter_unit(plain):
        product = Expression(without_marks(plain))
        return [product] if is_reference else [*readings, product]
    return readings


def _has_letter_unit(plain: str) -> bool:
    """True for `6 m`: six metres, or six times m."""
    return re.fullmatch(r"[a-zA-Z]", without_marks(split_unit(plain)[1])) is not None


def _readings(plain: str) -> list[Value]:
    return [_read(plain, 0)]


def _number_or_list(plain: str, is_reference: bool) -> list[Value]:
    """The readings by the meaning of commas: separators of thousands, or of values."""
    joined = _THOUSANDS.sub(lambda number: number[1] + number[2].replace(",", ""), plain)
    if joined == plain:
        return _readings(plain)
    is_enclosed = plain.startswith(("(", "[", "\\{"))
    if re.search(r",\s", plain):  # `1,234, 5,678`: both kinds are there
        return _readings(joined)
    if is_enclosed and (is_reference or not plain.startswith("(")):
        return _readings(plain)
    listed = [] if re.search(r",0\d\d", plain) else _readings(plain)
    return listed + _readings(joined) if is_enclosed else _readings(joined) + listed


def _read(text: str, depth: int) -> Value:
    """The value of a text whose commas separate values."""
    text = _trimmed(text)
    if number := _PLAIN_NUMBER.fullmatch(text):
        return Number(Fraction(text), len((number[1] + number[2]).lstrip("0")) if number[2] else 0)
    if not re.search(r"[^\W_]", text) and text not in ("\\{\\}", "()", "[]"):
        return Unreadable()
    if depth > MAX_DEPTH:
        return Expression(text)
    for reader in (_read_list, _read_union, _read_relation, _read_enclosed, _read_matrix, _read_notation):
        value = reader(text, depth)
        if value is not None:
            return value
    return _read_scalar(text)


def _read_list(text: str, depth: int) -> Value | None:
    parts = split_top(text, rf"{_AND}|[,;]")
    if len(parts) < 2:
        return None if "\\pm" not in text or _is_enclosed(text) else _both_signs(text, depth)
    if len(parts) > MAX_ITEMS:
        return Unreadable()
    is_conjunction = len(split_top(text, _AND)) > 1
    items = tuple(item for part in parts for item in _spread(_read(part, depth + 1)))
    if all(isinstance(item, Interval) for item in items):
        return Union(items) if is_conjunction else Items(items, "list")
    return Items(items, "list", is_conjunction)


def _spread(value: Value) -> tuple[Value, ...]:
    r"""The two values of a `\pm` in a list; any other value alone."""
    return value.items if isinstance(value, Items) and value.kind == "list" else (value,)


def _both_signs(text: str, depth: int) -> Value | None:
    if not re.search(r"\\(?:pm|mp)(?![a-zA-Z])", text):
        return None
    texts = []
    for plus, minus in (("+", "-"), ("-", "+")):
        signed = re.sub(r"\\pm(?![a-zA-Z])", plus, text)
        texts.append(re.sub(r"\\mp(?![a-zA-Z])", minus, signed))
    return Items(tuple(_read(signed, depth + 1) for signed in texts), "list", is_conjunction=True)


def _read_union(text: str, depth: int) -> Value | None:
    texts = split_top(text, r"\\cup(?![a-zA-Z])")
    if len(texts) < 2:
        return None
    parts = tuple(_read(part, depth + 1) for part in texts)
    sets = [part.items for part in parts if isinstance(part, Items) and part.kind == "set"]
    return Items(sum(sets, ()), "set") if len(sets) == len(parts) else Union(parts)


def _read_relation(text: str, depth: int) -> Value | None:
    signs = _top_relations(text)
    if not signs:
        return None
    sides = [part.strip() for part in split_top(text, _RELATION.pattern)]
    if not all(sides):
        return None
    if all(sign in ("=", "\\equiv", "\\approx", "\\in") for sign in signs):
        return Equation(sides[0], _read(sides[-1], depth + 1), text)
    return _interval_of(sides, signs, depth) or Expression(text)


def _interval_of(sides: list[str], signs: list[str], depth: int) -> Value | None:
    """`1 < x \\le 2` and `x > 1` as intervals."""
    if (
        not all(sign in ("<", ">", "\\le", "\\ge") for sign in signs)
        or len({sign in ("<", "\\le") for sign in signs}) > 1
    ):
        return None
    if signs[0] in (">", "\\ge"):
        sides, signs = sides[::-1], signs[::-1]
    names = [
        index for index, side in enumerate(sides) if _NAME.fullmatch(side) and side not in ("\\infty", "\\pi", "e")
    ]
    if len(sides) > 3 or names not in ([0], [1]) or (len(sides) == 3) != (names == [1] and len(sides) == 3):
        return None
    low = sides[0] if names == [1] else "-\\infty"
    high = "\\infty" if len(sides) == 2 and names == [1] else sides[-1]
    closed = [sign in ("\\le", "\\ge") for sign in signs]
    return Interval(
        _read(low, depth + 1),
        _read(high, depth + 1),
        is_left_closed=names == [1] and closed[0],
        is_right_closed=high is sides[-1] and closed[-1],
        name=sides[names[0]],
    )


def _read_enclosed(text: str, depth: int) -> Value | None:  # noqa: PLR0911
    if text == "\\emptyset":
        return Items((), "set")
    if re.fullmatch(r"\\mathbb\s*\{?R\}?|\\R", text):
        return Interval(Expression("-\\infty"), Expression("\\infty"), is_left_closed=False, is_right_closed=False)
    opening = next((bracket for bracket in ("\\{", "\\langle", "(", "[") if text.startswith(bracket)), None)
    if opening is None or not _is_enclosed(text):
        return None
    closing = next(bracket for bracket in ("\\}", "\\rangle", ")", "]") if text.endswith(bracket))
    inner = text[len(opening) : -len(closing)].strip()
    if not inner:
        return Items((), "set" if opening == "\\{" else "tuple")
    value = _read(inner, depth + 1)
    if opening == "\\{":
        return replace(value, kind="set") if _is_list(value) else Items((value,), "set")
    if _is_list(value) and (len(split_top(inner, r"[,;]")) > 1):
        return _bracketed(value, opening, closing)
    return value if opening == "(" and closing == ")" else None


def _bracketed(value: Items, opening: str, closing: str) -> Value:
    is_pair = len(value.items) == 2 and not any(isinstance(item, Text | Choice) for item in value.items)
    if is_pair and (opening == "[" or closing == "]"):
        low, high = value.items
        return Interval(low, high, is_left_closed=opening == "[", is_right_closed=closing == "]")
    return replace(value, kind="array" if opening == "[" else "tuple")


def _is_list(value: Value) -> TypeGuard[Items]:
    return isinstance(value, Items) and value.kind == "list"


def _read_matrix(text: str, depth: int) -> Value | None:
    matrix = _MATRIX.fullmatch(text)
    if matrix is None or matrix[1] == "vmatrix":
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", matrix[2]) if row.strip()]
    return Matrix(tuple(tuple(_read(cell, depth + 1) for cell in row.split("&")) for row in rows))


def _read_notation(text: str, depth: int) -> Value | None:
    """Notations of their own: dates, times, ratios, bases."""
    bare = without_marks(text)
    if _DATE.fullmatch(text):
        return Text(bare)
    if clock := _CLOCK.fullmatch(bare):
        return Clock(tuple(int(part) for part in clock.groups()[:3] if part), (clock[4] or "").lower())
    parts = split_top(re.sub(r"(?<=\d)\s*⟦to⟧\s*(?=\d)", ":", text), ":")
    if len(parts) > 1 and all(part.strip() for part in parts):
        values = tuple(_read(part, depth + 1) for part in parts)
        return Ratio(values) if all(isinstance(value, Number | Expression) for value in values) else None
    if based := _BASE.fullmatch(text):
        return _read_base(based[1], without_marks(based[2]))
    return None


def _read_base(digits: str, name: str) -> Value | None:
    base = _BASES.get(name) or (int(name) if name.isdigit() else 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return Number(Fraction(int(digits, base)), base=base)


def _read_scalar(text: str) -> Value:
    """A number, words, or an expression; a unit behind it."""
    is_percent = text.endswith("%") or text.endswith("⟦percent⟧")
    rest = text.removesuffix("%").removesuffix("⟦percent⟧").strip() if is_percent else text
    units: list[str] = []
    while not is_percent:
        rest, written = split_unit(rest)
        if not written:
            break
        units.append(written)
    unit, factor = read_unit(" ".join(units[::-1]))
    value = exact_value(rest)
    if value is not None:
        digits = _DECIMAL.fullmatch(rest)
        return Number(value * factor, len((digits[1] + digits[2]).lstrip("0")) if digits else 0, unit, is_percent)
    if sign := re.fullmatch(r"([+-]?)\s*\\infty", rest):
        return Expression(sign[1].replace("+", "") + "\\infty")
    if _is_text(rest):
        return Text(" ".join(without_marks(text).replace('"', "").split()))
    return Expression(rest if factor == 1 else f"{factor}({rest})", unit)


def _is_text(text: str) -> bool:
    """True for words, runs of capital letters, numbers side by side, and formulas with words in them."""
    if re.search(r"(?<![\w^_])\d[\d.]*\s+[\d.]", text) or re.fullmatch(r"[A-Z]{2,}", text):
        return True
    outside = re.sub(r"_\s*\{[^{}]*\}|_\s*⟦[^⟧]*⟧", "", text)
    return "⟦" in outside or not re.search(r"[a-zA-Z0-9\\]", text)


def split_top(text: str, separator: str) -> list[str]:
    """The parts of the text between separators outside all brackets."""
    parts, start, depth = [], 0, 0
    for match in re.finditer(rf"{_BRACKETS.pattern}|(?P<separator>{separator})", text):
        token = match[0]
        if match["separator"] is not None:
            if depth == 0:
                parts.append(text[start : match.start()])
                start = match.end()
        else:
            depth += 1 if token in _OPENING or token == "\\begin" else -1
    return [*parts, text[start:]]


def is_name(text: str) -> bool:
    """True for what stands on the left of a definition: `x`, `f(x)`, `m_{max}`, a word, `(x, y)`."""
    names = split_top(text[1:-1], ",") if text.startswith("(") and text.endswith(")") else [text]
    return all(_NAME.fullmatch(name.strip()) for name in names)


def _top_relations(text: str) -> list[str]:
    return list(_separators(text))


def _separators(text: str) -> Iterator[str]:
    depth = 0
    for match in re.finditer(rf"{_BRACKETS.pattern}|(?P<relation>{_RELATION.pattern})", text):
        if match["relation"] is not None:
            if depth == 0:
                yield match[0]
        else:
            depth += 1 if match[0] in _OPENING or match[0] == "\\begin" else -1


def _depth(text: str) -> int:
    """Nesting depth of the brackets."""
    depths = itertools.accumulate(1 if match[0] in _OPENING else -1 for match in _BRACKETS.finditer(text))
    return max(depths, default=0)


def _is_enclosed(text: str) -> bool:
    """True when the first bracket closes at the very end, as in `(1, 2]`."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        if depth == 0 and match.start() > 0:
            return False
        depth += 1 if match[0] in _OPENING or match[0] == "\\begin" else -1
        if depth == 0:
            return match.end() == len(text)
    return False


def _trimmed(text: str) -> str:
    """Without spacing, a sentence's punctuation, and braces around the whole."""
    text = re.sub(r"\\boxed\s*", "", text).strip()
    for _ in range(MAX_DEPTH):
        bare = text[:1] + text[1:].rstrip(".,;: ")
        if bare.startswith("{") and _is_enclosed(bare):
            bare = bare[1:-1].strip()
        if bare == text:
            break
        text = bare
    return text
