"""Equality of formulas by their values: at high precision, and at several points where there are variables.

Two formulas that agree in hundreds of digits, or at random points, are equal; sizes do not matter, since everything is
compared relative to the terms it is made of.
"""

from __future__ import annotations

import random
import re
from fractions import Fraction
from typing import Any

import mpmath

from relay_lightning.rewards.formula import FormulaError, Node, TooLargeError, parse_formula

CONSTANT_DIGITS = (300, 1500)
POINT_DIGITS = (60, 150)
"""Two precisions: a difference of zero shrinks with the precision, a small one stays."""
NUM_POINTS = 3
NUM_INTEGER_POINTS = 12
"""More where rounding, a factorial or a sign makes the variables integers: they agree by chance more often."""
MAX_EXPONENT = 100_000
"""Values beyond e to this power are not computed."""

_RELATION = re.compile(r"\\(?:le|ge|ne|equiv)(?![a-zA-Z])|[<>=]")
_FLIPPED = {">": "<", "\\ge": "\\le"}


def formulas_equal(reference: str, given: str, tolerance: Fraction) -> bool:
    """Compares two formulas, equations or inequalities. `tolerance` is absolute and for constants only.

    Raises TooLargeError for a value that cannot be computed, and FormulaError where a side is none of these or has no
    value to compare.
    """
    sides = [_split_relation(text) for text in (reference, given)]
    if (sides[0][0] == "") != (sides[1][0] == ""):
        return False
    if sides[0][0]:
        return sides[0][0] == sides[1][0] and _proportional(sides[0][1], sides[1][1], sides[0][0])
    return any(_equal(sides[0][1], sides[1][1], tolerance, base) for base in _log_bases(sides[0][1], sides[1][1]))


def _split_relation(text: str) -> tuple[str, Node]:
    """The sign and the difference of the sides of a relation; no sign for a formula."""
    signs = _RELATION.findall(text)
    if not signs:
        return "", parse_formula(text)
    if len(signs) > 1:
        raise FormulaError(f"{text!r} has more than one sign.")
    left, right = (parse_formula(side) for side in _RELATION.split(text))
    if signs[0] in _FLIPPED:
        left, right = right, left
    return _FLIPPED.get(signs[0], signs[0]), Node("+", (left, Node("neg", (right,))))


def _equal(first: Node, second: Node, tolerance: Fraction, log_base: int) -> bool:
    names = sorted(_names(first) | _names(second))
    difference = Node("+", (first, Node("neg", (second,))))
    if "oo" in names or any(_contains(node, "oo") for node in (first, second)):
        raise FormulaError("infinity has no digits.")
    if not names:
        return _vanishes(difference, {}, CONSTANT_DIGITS, tolerance, log_base)
    return all(
        _vanishes(difference, point, POINT_DIGITS, Fraction(0), log_base) for point in _points(names, difference)
    )


def _proportional(first: Node, second: Node, sign: str) -> bool:
    """True when one difference is a constant multiple of the other, a positive one for inequalities."""
    names = sorted(_names(first) | _names(second))
    ratios = []
    with mpmath.workdps(POINT_DIGITS[0]):
        for point in _points(names, Node("+", (first, second))) if names else [{}]:
            above, below = (_Evaluation(point, 0).value(node) for node in (first, second))
            if below == 0 or above == 0:
                return bool(above == below)
            ratios.append(above / below)
        is_constant = all(abs(ratio - ratios[0]) <= abs(ratios[0]) * mpmath.mpf(10) ** -40 for ratio in ratios)
        is_positive = sign in ("=", "\\ne", "\\equiv") or mpmath.re(ratios[0]) > 0
        return is_constant and bool(is_positive) and abs(mpmath.im(ratios[0])) == 0


def have_other_solutions(reference: str, given: str) -> bool:
    """True when a solution of the equation `reference` is found that is none of `given`.

    Raises FormulaError where a side is no equation that can be evaluated.
    """
    first, second = (_split_relation(text)[1] for text in (reference, given))
    names = sorted(_names(first) | _names(second))
    with mpmath.workdps(POINT_DIGITS[0]):
        point = _points(names, first)[0]
        for name in sorted(_names(first)):
            for start in (1.7, -2.3):
                try:
                    root = mpmath.findroot(lambda value, n=name: _Evaluation(point | {n: value}, 0).value(first), start)
                    evaluation = _Evaluation(point | {name: root}, 0)
                    if abs(evaluation.value(second)) > evaluation.scale * mpmath.mpf(10) ** -10:
                        return True
                except (FormulaError, ValueError, ZeroDivisionError):
                    continue
    return False


def _vanishes(
    difference: Node, point: dict[str, Any], precisions: tuple[int, int], tolerance: Fraction, log_base: int
) -> bool:
    """True when the difference is rounding noise at both precisions, and less of it at the higher one."""
    noise = []
    for digits in precisions:
        with mpmath.workdps(digits):
            evaluation = _Evaluation(point, log_base)
            value = abs(evaluation.value(difference))
            if tolerance:
                return bool(value < mpmath.mpf(tolerance.numerator) / tolerance.denominator)
            if value > evaluation.scale * mpmath.mpf(10) ** -(digits * 4 // 5):
                return False
            noise.append(value)
    return bool(noise[1] == 0 or noise[0] == 0 or noise[1] <= noise[0] * mpmath.mpf(10) ** -(precisions[0] // 4))


def _points(names: list[str], node: Node) -> list[dict[str, Any]]:
    """Fixed random values for the variables: positive, since formulas of quantities assume it."""
    draw = random.Random(20240229)
    if _needs_integers(node):
        return [{name: mpmath.mpf(draw.randint(2, 40)) for name in names} for _ in range(NUM_INTEGER_POINTS)]
    points: list[dict[str, Any]] = []
    has_abs = _contains(node, "abs")
    with mpmath.workdps(POINT_DIGITS[1]):
        for index in range(NUM_POINTS):
            sign = -1 if has_abs and index else 1
            points.append({name: sign * mpmath.mpf(draw.randint(10**8, 3 * 10**8)) / 10**8 for name in names})
    return points


def _needs_integers(node: Node) -> bool:
    if node.name in ("floor", "ceil") and _names(node):
        return True
    if node.name == "^" and _names(node.arguments[1]) and _is_negative_number(node.arguments[0]):
        return True
    return any(map(_needs_integers, node.arguments))


def _is_negative_number(node: Node) -> bool:
    return node.name == "neg" and not _names(node)


def _names(node: Node) -> set[str]:
    if node.name == "variable":
        return {str(node.value)}
    return set().union(*map(_names, node.arguments))


def _contains(node: Node, name: str) -> bool:
    return name in (node.name, node.value) or any(_contains(argument, name) for argument in node.arguments)


def _log_bases(*nodes: Node) -> tuple[int, ...]:
    r"""A bare `\log` may be natural or decimal: 0 and 10."""
    return (0, 10) if any(_contains(node, "log") for node in nodes) else (0,)


class _Evaluation:
    """One evaluation at a point; `scale` becomes the largest term of a sum that counts for the value."""

    def __init__(self, point: dict[str, Any], log_base: int) -> None:
        self.scale = mpmath.mpf(0)
        self._point = point
        self._log_base = log_base

    def value(self, node: Node) -> Any:
        if node.name == "number":
            assert isinstance(node.value, Fraction)
            return mpmath.mpf(node.value.numerator) / node.value.denominator
        if node.name == "variable":
            return self._point[str(node.value)]
        if node.name == "constant":
            return {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.j}[str(node.value)] * 1
        values = [self.value(argument) for argument in node.arguments]
        try:
            return _checked(self._apply(node.name, values))
        except FormulaError:
            raise
        except (ArithmeticError, ValueError, TypeError) as error:
            raise FormulaError(f"{node.name} has no value there.") from error

    def _apply(self, name: str, values: list[Any]) -> Any:  # noqa: PLR0911, PLR0912
        match name, values:
            case "+", _:
                self.scale = max(self.scale, *map(abs, values))
                return mpmath.fsum(values)
            case "*", _:
                return mpmath.fprod(values)
            case "inverse", [first]:
                return 1 / first
            case "neg", [first]:
                return -first
            case "^", [base, exponent]:
                return _power(base, exponent)
            case "root", [base, index]:
                if mpmath.im(base) == 0 and base < 0 and index % 2 == 1:
                    return -_power(-base, 1 / index)
                return _power(base, 1 / index)
            case "!", [first]:
                return mpmath.factorial(_limited(first, MAX_EXPONENT // 10))
            case "binom", [first, second]:
                return mpmath.binomial(_limited(first, MAX_EXPONENT // 10), _limited(second, MAX_EXPONENT // 10))
            case "log", [first, base]:
                return mpmath.log(first) / mpmath.log(base)
            case "log", [first]:
                return mpmath.log(first) / (mpmath.log(self._log_base) if self._log_base else 1)
            case "lg", [first]:
                return mpmath.log(first) / mpmath.log(10)
            case _, [first]:
                return _FUNCTIONS[name](_limited(first, MAX_EXPONENT))
        raise FormulaError(f"{name} is not computed.")


_FUNCTIONS: dict[str, Any] = {
    "ln": mpmath.log, "exp": mpmath.exp, "abs": abs, "floor": mpmath.floor, "ceil": mpmath.ceil,
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "sinh": mpmath.sinh, "cosh": mpmath.cosh, "tanh": mpmath.tanh, "arcsin": mpmath.asin, "arccos": mpmath.acos,
    "arctan": mpmath.atan, "arccot": mpmath.acot,
}  # fmt: skip


def _power(base: Any, exponent: Any) -> Any:
    if base == 0:
        if exponent == 0 or mpmath.re(exponent) < 0:
            raise ZeroDivisionError
        return mpmath.mpf(0)
    _limited(exponent * mpmath.log(abs(base)), MAX_EXPONENT)
    return mpmath.power(base, exponent)


def _limited(value: Any, limit: int) -> Any:
    if abs(value) > limit:
        raise TooLargeError("the value is too large to compute.")
    return value


def _checked(value: Any) -> Any:
    if not mpmath.isfinite(value):
        raise FormulaError("the value is not finite.")
    return value
