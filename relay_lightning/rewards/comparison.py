"""Comparison of typed answers: numbers exactly, sequences in order, sets in any; expressions by a function given."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from fractions import Fraction

from relay_lightning.rewards.answer_values import (
    Choice,
    Clock,
    Equation,
    Expression,
    Interval,
    Items,
    Matrix,
    Number,
    Ratio,
    Text,
    Union,
    Unreadable,
    Value,
    is_name,
    read_values,
)
from relay_lightning.rewards.units import Unit


class Equivalence(StrEnum):
    """Outcome of a comparison."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNDECIDED = "undecided"
    """One side is no mathematics, or the comparison failed or took too long."""


MIN_ROUNDED_DIGITS = 7
"""A decimal of so many significant digits is taken for the exact value that it is rounded from."""
MIN_DOUBLE_DIGITS = 15
DOUBLE_TOLERANCE = Fraction(1, 10**12)
"""Relative, for decimals with the digits of a double: 0.30000000000000004 is 0.3."""
MAX_WRITTEN_BITS = 10_000
"""Longer numbers are compared with numbers only; Python does not write them out."""
_SMALL_OPTIONS = frozenset("abcdfghj")
"""Bare small letters that may name an option; e and i are numbers, and others variables."""

ExpressionCheck = Callable[[str, str, Fraction], Equivalence]
"""Compares two expressions in plain notation up to an absolute tolerance."""


def compare_answers(reference: str, given: str, check: ExpressionCheck) -> Equivalence:
    """Compares two answers in any notation; `check` is asked only for what is neither numbers nor words.

    With several readings of a side one pair that is equal is enough.
    """
    comparison = Comparison(check)
    return _any(
        comparison.compare(wanted, found)
        for wanted in read_values(reference, is_reference=True)
        for found in read_values(given, is_reference=False)
    )


class Comparison:
    """Compares typed values; the reference comes first and decides whether order matters."""

    def __init__(self, check: ExpressionCheck) -> None:
        self._check = check

    def compare(self, reference: Value, given: Value) -> Equivalence:
        if reference == given and not isinstance(reference, Unreadable):
            return Equivalence.EQUAL
        if isinstance(reference, Unreadable) or isinstance(given, Unreadable):
            return Equivalence.UNDECIDED
        if isinstance(reference, Equation) or isinstance(given, Equation):
            return self._equations(reference, given)
        if isinstance(reference, Items) or isinstance(given, Items):
            return self._items(reference, given)
        if isinstance(reference, Interval | Union) or isinstance(given, Interval | Union):
            return self._sets(reference, given)
        return self._scalars(reference, given)

    def _scalars(self, reference: Value, given: Value) -> Equivalence:  # noqa: PLR0911
        match reference, given:
            case (Choice(), _) | (_, Choice()):
                return self._choices(reference, given)
            case Number(), Number():
                return _equal(_numbers_equal(reference, given) and _units_match(reference.unit, given.unit))
            case ((Number() | Expression()), (Number() | Expression())):
                return self._expressions(reference, given)
            case Text(), Text():
                return _equal(_words(reference.words) == _words(given.words))
            case Clock(), Clock():
                is_same_half = reference.half == given.half or not (reference.half and given.half)
                return _equal(reference.parts == given.parts and is_same_half)
            case ((Ratio() | Clock() | Number() | Expression()), (Ratio() | Clock() | Number() | Expression())):
                return self._ratios(reference, given)
            case Matrix(), Matrix():
                if [len(row) for row in reference.rows] != [len(row) for row in given.rows]:
                    return Equivalence.DIFFERENT
                return _all(map(self.compare, sum(reference.rows, ()), sum(given.rows, ())))
        return Equivalence.DIFFERENT

    def _choices(self, reference: Value, given: Value) -> Equivalence:
        """Letters are equal; a letter with text behind it also stands for that text, beside another value."""
        if isinstance(reference, Choice) and isinstance(given, Choice):
            if reference.letter.isupper() or reference.rest:
                return _equal(reference.letter == given.letter.upper())
            return _equal(reference.letter == given.letter)
        if isinstance(reference, Choice) and isinstance(given, Expression):
            return _equal(given.text in _SMALL_OPTIONS and given.text.upper() == reference.letter)
        if isinstance(reference, Choice) and reference.rest and not isinstance(given, Choice):
            texts = read_values(reference.rest, is_reference=True)
            return _any(self.compare(value, given) for value in texts if not isinstance(value, Choice))
        return Equivalence.DIFFERENT

    def _expressions(self, reference: Number | Expression, given: Number | Expression) -> Equivalence:
        if not _units_match(reference.unit, given.unit):
            return Equivalence.DIFFERENT
        tolerance = Fraction(0)
        for value in (reference, given):
            if isinstance(value, Number) and value.digits >= MIN_ROUNDED_DIGITS:
                tolerance = max(tolerance, _last_digit(value))
        if any(isinstance(value, Number) and _size(value) > MAX_WRITTEN_BITS for value in (reference, given)):
            return Equivalence.UNDECIDED
        texts = [_as_text(value) for value in (reference, given)]
        if texts[0].replace(" ", "") == texts[1].replace(" ", ""):
            return Equivalence.EQUAL
        if any("\\infty" in text for text in texts) or all(re.fullmatch("[a-zA-Z]", text) for text in texts):
            return Equivalence.DIFFERENT
        return self._check(texts[0], texts[1], tolerance)

    def _ratios(self, reference: Value, given: Value) -> Equivalence:
        """Two times are compared as such; beside a ratio, `2:30` is one too, and so is a fraction beside `1:2`."""
        sides = [_ratio_parts(value) for value in (reference, given)]
        if len(sides[0]) != len(sides[1]):
            return Equivalence.DIFFERENT
        if not all(isinstance(part, Number) for part in (*sides[0], *sides[1])):
            return _all(map(self.compare, *sides))
        first, second = ([part.value for part in side if isinstance(part, Number)] for side in sides)
        return _equal(all(a * second[0] == b * first[0] for a, b in zip(first, second, strict=True)) and any(second))

    def _equations(self, reference: Value, given: Value) -> Equivalence:
        if not isinstance(reference, Equation):
            assert isinstance(given, Equation)
            return self.compare(reference, given.right)  # `x = 5`, `2 + 3 = 5`, `x + y = 5`
        if not isinstance(given, Equation):
            return self.compare(reference.right, given) if is_name(reference.left) else Equivalence.DIFFERENT
        left, other = (side.left.replace(" ", "") for side in (reference, given))
        renamed = _renamed(given, left, other)
        if left == renamed.left.replace(" ", "") and is_name(reference.left):
            return self.compare(reference.right, renamed.right)
        if "⟦" in reference.text:
            sides = [sorted(_words(side) for side in re.split(r"\s*=\s*", value.text)) for value in (reference, given)]
            return _equal(sides[0] == sides[1])
        return self._check(reference.text, given.text, Fraction(0))

    def _items(self, reference: Value, given: Value) -> Equivalence:  # noqa: PLR0911
        if isinstance(given, Items) and isinstance(reference, Items):
            first, second = _unlabelled(reference, given), _unlabelled(given, reference)
            kinds = {first.kind, second.kind}
            if kinds == {"set", "tuple"}:
                return Equivalence.DIFFERENT
            if kinds == {"set"}:
                first, second = (Items(self._distinct(side.items), "set") for side in (first, second))
            if len(first.items) != len(second.items):
                return Equivalence.DIFFERENT
            if "tuple" in kinds or (first.kind != "set" and _is_ordered(first, given)):
                return _all(map(self.compare, first.items, second.items))
            return self._in_any_order(first.items, second.items)
        if isinstance(reference, Interval) and isinstance(given, Items) and given.kind == "tuple":
            return self._sets(reference, given)
        if isinstance(given, Interval) and isinstance(reference, Items) and reference.kind == "tuple":
            return self._sets(reference, given)
        for items, other, swapped in ((reference, given, False), (given, reference, True)):
            if isinstance(items, Items) and items.kind == "set" and len(items.items) == 1:
                return self.compare(other, items.items[0]) if swapped else self.compare(items.items[0], other)
        return Equivalence.DIFFERENT

    def _distinct(self, values: Sequence[Value]) -> tuple[Value, ...]:
        distinct: list[Value] = []
        for value in values:
            if not any(_same_number(value, other) for other in distinct):
                distinct.append(value)
        return tuple(distinct)

    def _in_any_order(self, reference: Sequence[Value], given: Sequence[Value]) -> Equivalence:
        left = list(given)
        result = Equivalence.EQUAL
        for wanted in reference:
            left = [v for v in left if v == wanted] + [v for v in left if v != wanted]  # what is written alike first
            for index, found in enumerate(left):
                verdict = self.compare(wanted, found)
                if verdict is Equivalence.EQUAL:
                    del left[index]
                    break
                if verdict is Equivalence.UNDECIDED:
                    result = verdict
            else:
                return Equivalence.DIFFERENT if result is Equivalence.EQUAL else result
        return Equivalence.EQUAL

    def _sets(self, reference: Value, given: Value) -> Equivalence:
        if isinstance(reference, Union) or isinstance(given, Union):
            wanted, found = _components(reference), _components(given)
            if len(wanted) == len(found) > 1:
                return self._in_any_order(wanted, found)
            if len(wanted) != len(found):
                return Equivalence.DIFFERENT
            reference, given = wanted[0], found[0]
        first, second = _as_interval(reference), _as_interval(given)
        if first is None or second is None or (first.name and second.name and first.name != second.name):
            return Equivalence.DIFFERENT
        if (first.is_left_closed, first.is_right_closed) != (second.is_left_closed, second.is_right_closed):
            return Equivalence.DIFFERENT
        return _all(self.compare(a, b) for a, b in ((first.low, second.low), (first.high, second.high)))


def _equal(is_equal: bool) -> Equivalence:
    return Equivalence.EQUAL if is_equal else Equivalence.DIFFERENT


def _any(verdicts: Iterable[Equivalence]) -> Equivalence:
    return _decide(verdicts, Equivalence.EQUAL, otherwise=Equivalence.DIFFERENT)


def _all(verdicts: Iterable[Equivalence]) -> Equivalence:
    return _decide(verdicts, Equivalence.DIFFERENT, otherwise=Equivalence.EQUAL)


def _decide(verdicts: Iterable[Equivalence], decisive: Equivalence, *, otherwise: Equivalence) -> Equivalence:
    """Returns `decisive` at the first verdict that is; else UNDECIDED if one is, else `otherwise`."""
    result = otherwise
    for verdict in verdicts:
        if verdict is decisive:
            return verdict
        if verdict is Equivalence.UNDECIDED:
            result = verdict
    return result


def _numbers_equal(reference: Number, given: Number) -> bool:
    if reference.base not in (10, given.base):
        return False  # asked for in this base
    if reference.is_percent != given.is_percent:
        percent, plain = (reference, given) if reference.is_percent else (given, reference)
        return percent.value == plain.value or percent.value == 100 * plain.value
    first, second = reference.value, given.value
    if first == second:
        return True
    difference = abs(first - second)
    if max(reference.digits, given.digits) >= MIN_DOUBLE_DIGITS:
        return difference <= DOUBLE_TOLERANCE * abs(first)
    for rounded, exact in ((reference, given), (given, reference)):
        if rounded.digits >= MIN_ROUNDED_DIGITS and not exact.digits and exact.value.denominator > 1:
            return difference < _last_digit(rounded)
    return False


def _size(number: Number) -> int:
    return max(number.value.numerator.bit_length(), number.value.denominator.bit_length())


def _last_digit(number: Number) -> Fraction:
    """The weight of the last digit of a decimal."""
    weight = Fraction(1)
    while (number.value / weight).denominator != 1:
        weight /= 10
    return weight


def _same_number(first: Value, second: Value) -> bool:
    return first == second or (isinstance(first, Number) and isinstance(second, Number) and first.value == second.value)


def _units_match(reference: Unit | None, given: Unit | None) -> bool:
    return reference is None or given is None or reference.matches(given)


def _as_text(value: Number | Expression) -> str:
    if isinstance(value, Expression):
        return value.text
    value_text = f"\\frac{{{value.value.numerator}}}{{{value.value.denominator}}}"
    return value_text if value.value.denominator != 1 else str(value.value.numerator)


def _words(text: str) -> str:
    return " ".join(re.sub(r"[⟦⟧\"“”‘’'`.,;:!?*]+(?=\s|$)|(?<!\S)[⟦⟧\"“”‘’'`*]+", "", text).casefold().split())


def _ratio_parts(value: Value) -> tuple[Value, ...]:
    if isinstance(value, Ratio):
        return value.parts
    if isinstance(value, Clock):
        return tuple(Number(Fraction(part)) for part in value.parts)
    if isinstance(value, Number):
        return (Number(Fraction(value.value.numerator)), Number(Fraction(value.value.denominator)))
    return (value,)


def _components(value: Value) -> list[Value]:
    """The parts of a union, those with rational ends joined where they overlap or touch."""
    parts = value.parts if isinstance(value, Union) else (value,)
    intervals = [interval for part in parts if (interval := _as_interval(part)) is not None]
    ends = [(_end(interval.low), _end(interval.high)) for interval in intervals]
    if len(intervals) < len(parts) or any(end is None for pair in ends for end in pair):
        return list(parts)
    joined: list[Interval] = []
    for interval in sorted(intervals, key=lambda part: (_end(part.low), not part.is_left_closed)):
        last = joined[-1] if joined else None
        gap = None if last is None else (_end(interval.low) or 0) - (_end(last.high) or 0)
        if (
            last is None
            or gap is None
            or gap > 0
            or (gap == 0 and not (last.is_right_closed or interval.is_left_closed))
        ):
            joined.append(interval)
        elif (_end(interval.high), interval.is_right_closed) > (_end(last.high), last.is_right_closed):
            joined[-1] = replace(last, high=interval.high, is_right_closed=interval.is_right_closed)
    return list(joined)


def _end(value: Value) -> Fraction | float | None:
    if isinstance(value, Number):
        return value.value
    if isinstance(value, Expression):
        return {"\\infty": math.inf, "-\\infty": -math.inf}.get(value.text)
    return None


def _as_interval(value: Value) -> Interval | None:
    if isinstance(value, Items) and value.kind == "tuple" and len(value.items) == 2:
        return Interval(*value.items, is_left_closed=False, is_right_closed=False)
    return value if isinstance(value, Interval) else None


def _is_ordered(reference: Items, given: Items) -> bool:
    """Words come in order unless "and" joins them; numbers do when one stands there twice, for no set holds it so."""
    items = reference.items
    if any(isinstance(item, Text | Clock) for item in items) or (items and all(map(_is_letter, items))):
        return not reference.is_conjunction
    if any(_same_number(a, b) for i, a in enumerate(items) for b in items[:i]):
        return given.kind != "set"
    return False


def _is_letter(value: Value) -> bool:
    return isinstance(value, Expression) and len(value.text) == 1


def _unlabelled(values: Items, others: Items) -> Items:
    """`x = -2, x = 1` and `n = 2, 3` without the names; `y = 3, x = 2` beside `(2, 3)` in the order of the names."""
    labelled = [item for item in values.items if isinstance(item, Equation) and is_name(item.left)]
    names = [item.left.replace(" ", "") for item in labelled]
    if not names:
        return values
    if len(set(names)) == 1 and not names[0].endswith(")"):
        return replace(values, items=tuple(i.right if isinstance(i, Equation) else i for i in values.items))
    if len(set(names)) == len(values.items) and others.kind == "tuple":
        return Items(tuple(item.right for item in sorted(labelled, key=lambda item: item.left)), "tuple")
    return values


def _renamed(equation: Equation, left: str, other: str) -> Equation:
    """`f(n) = n^2` in the variable of `f(x)`."""
    first, second = (re.fullmatch(r"(.*)\(([a-zA-Z])\)", name) for name in (left, other))
    if not first or not second or first[1] != second[1] or first[2] == second[2]:
        return equation
    text = re.sub(rf"(?<![a-zA-Z\\]){second[2]}(?![a-zA-Z])", first[2], equation.text)
    value = read_values(text, is_reference=True)[0]
    return value if isinstance(value, Equation) else equation
