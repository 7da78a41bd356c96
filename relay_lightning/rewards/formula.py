"""Formulas: a parser from plain notation to a tree, and the exact rational value of a tree without variables."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_BITS = 1 << 16
"""Numerators and denominators of more bits are not computed exactly."""
MAX_FACTORIAL = 3000
MAX_DEPTH = 60
"""Brackets in brackets."""

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan arccot exp log ln lg abs floor ceil".split()
)

_SYMBOL = (
    r"(?:\\(?:d?dot|bar|vec|hat|tilde|overline|overrightarrow|widehat|mathbb|mathcal|mathbf)\s*\{[^{}]*\}"
    r"|\\(?:angle|triangle|square)\s*(?:[A-Z]\s*(?:_\s*(?:\{\w+\}|\w)\s*)?)+"
    r"|\\(?:[a-zA-Z]+)|[a-zA-Z])"
)
_SUBSCRIPT = r"(?:\s*_\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|⟦[^⟧]*⟧|\\[a-zA-Z]+|\w))?"
_PART = r"(?:[^{}]|\{[^{}]*\})*"
_DERIVATIVE = (
    rf"\\frac\s*\{{\s*(?:d|\\partial)\s*(?:\^\s*\{{?\s*\d\s*\}}?)?\s*(?=[a-zA-Z\\}}]){_PART}\}}"
    rf"\s*\{{\s*(?:d|\\partial)\s*[a-zA-Z\\]{_PART}\}}"
)
_APPLIED = r"(?:[fghuvwxyzFGHIPT]|\\(?:delta|theta|phi|psi))'*\s*\(\s*(?:[a-zA-Z]|0)\s*\)"
_OPERATORS = frozenset("frac binom sqrt cdot times lfloor rfloor lceil rceil int sum prod lim pm mp".split()) | FUNCTIONS
_UNREADABLE = frozenset("int iint oint sum prod lim pm mp ldots cup cap to mod pmod bmod max min gcd lcm det in".split())
_TOKEN = re.compile(
    rf"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+(?![a-zA-Z.]))?|\.\d+(?:[eE][+-]?\d+(?![a-zA-Z.]))?)"
    rf"|(?P<unit>{_DERIVATIVE}|{_APPLIED})"
    rf"|(?P<operator>\\(?:{'|'.join(sorted(_OPERATORS, key=len, reverse=True))})(?![a-zA-Z])|[-+*/^!(){{}}\[\]|_°])"
    rf"|(?P<symbol>{_SYMBOL}'*{_SUBSCRIPT}'*))"
)
_CLOSING = {"(": ")", "{": "}", "[": "]", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_ENCLOSED_FUNCTIONS = {"|": "abs", "\\lfloor": "floor", "\\lceil": "ceil"}
_CONSTANTS = {"\\pi": "pi", "e": "e", "i": "i", "\\infty": "oo"}


class FormulaError(ValueError):
    """The text is no formula of this grammar, or it has no value of the kind asked for."""


class TooLargeError(FormulaError):
    """The value is too large to compute."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operation on other nodes, a number, a constant, or a variable.

    `name` is one of `+ * inverse ^ neg ! binom root log` or a function's name, `number`, `constant` or `variable`.
    """

    name: str
    arguments: tuple[Node, ...] = ()
    value: Fraction | str = ""


def parse_formula(text: str) -> Node:
    """The tree of a formula in plain notation. Raises FormulaError for anything else."""
    parser = _Parser(text)
    node = parser.sum()
    if parser.token:
        raise FormulaError(f"'{parser.token}' is not expected in {text!r}.")
    return node


def exact_value(text: str) -> Fraction | None:
    """The rational value of a formula without variables.

    None for everything else: a variable, an irrational root, no formula, a value of more than `MAX_BITS` bits.
    """
    try:
        return _exact(parse_formula(text))
    except (FormulaError, ZeroDivisionError):
        return None


class _Parser:
    """Recursive descent; each method reads one level of precedence."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position, text = 0, text.strip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise FormulaError(f"{text[position:]!r} cannot be read.")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        self._tokens.append(("end", ""))
        self._next = 0
        self._depth = 0
        self._bars = 0

    @property
    def token(self) -> str:
        return self._tokens[self._next][1]

    @property
    def _kind(self) -> str:
        return self._tokens[self._next][0]

    def _take(self) -> str:
        self._next += 1
        return self._tokens[self._next - 1][1]

    def sum(self) -> Node:
        terms = [self._product()]
        while self.token in ("+", "-"):
            is_sum = self._take() == "+"
            term = self._product()
            terms.append(term if is_sum else Node("neg", (term,)))
        return terms[0] if len(terms) == 1 else Node("+", tuple(terms))

    def _product(self) -> Node:
        factors = [self._signed()]
        while True:
            if self.token in ("*", "\\cdot", "\\times"):
                self._take()
                factors.append(self._signed())
            elif self.token == "/":
                self._take()
                factors.append(Node("inverse", (self._signed(),)))
            elif self._starts_factor():
                factors.append(self._power())
            else:
                return factors[0] if len(factors) == 1 else Node("*", tuple(factors))

    def _starts_factor(self) -> bool:
        """True for what multiplies without a sign: anything that begins a value, but a number."""
        if self._kind == "operator":
            if self.token == "|":
                return not self._bars
            return self.token in ("(", "{", "[") or (self.token[0] == "\\" and self.token[:2] != "\\r")
        return self._kind in ("symbol", "unit")

    def _signed(self) -> Node:
        is_negative = False
        while self.token in ("+", "-"):
            is_negative ^= self._take() == "-"
        node = self._power()
        return Node("neg", (node,)) if is_negative else node

    def _power(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaError("too many brackets.")
        node = self._factorial()
        if self.token == "^":
            self._take()
            is_negative = self.token == "-" and bool(self._take())
            exponent = self._power()
            node = Node("^", (node, Node("neg", (exponent,)) if is_negative else exponent))
        self._depth -= 1
        return node

    def _factorial(self) -> Node:
        node = self._atom()
        if self.token == "!":
            self._take()
            node = Node("!", (node,))
            if self.token == "!":
                raise FormulaError("double factorials are not read.")
        if self.token == "°":
            self._take()
            node = Node("*", (node, Node("constant", value="pi"), Node("number", value=Fraction(1, 180))))
        return node

    def _atom(self) -> Node:
        kind, token = self._tokens[self._next]
        self._take()
        if kind == "number":
            return Node("number", value=_number(token))
        if kind == "unit":
            return Node("variable", value=re.sub(r"\s", "", token))
        if kind == "symbol":
            return _symbol(token)
        if token in _CLOSING:
            return self._enclosed(token)
        if token == "\\frac":
            return Node("*", (self._group(), Node("inverse", (self._group(),))))
        if token == "\\binom":
            return Node("binom", (self._group(), self._group()))
        if token == "\\sqrt":
            index = self._enclosed(self._take()) if self.token == "[" else Node("number", value=Fraction(2))
            return Node("root", (self._group(), index))
        if token[1:] in FUNCTIONS:
            return self._function(token[1:])
        raise FormulaError(f"'{token}' is not expected.")

    def _enclosed(self, opening: str) -> Node:
        self._bars, bars = int(opening == "|"), self._bars
        node = self.sum()
        self._bars = bars
        if self._take() != _CLOSING[opening]:
            raise FormulaError(f"'{opening}' is not closed.")
        return Node(_ENCLOSED_FUNCTIONS[opening], (node,)) if opening in _ENCLOSED_FUNCTIONS else node

    def _group(self) -> Node:
        if self.token != "{":
            raise FormulaError("an argument in braces is missing.")
        return self._enclosed(self._take())

    def _function(self, name: str) -> Node:
        """`\\sin^{2} 2x`, `\\log_{2}(8)`, `\\tan^{-1} 2`."""
        base = power = None
        while self.token in ("^", "_"):
            if self._take() == "^":
                is_negative = self.token == "-" and bool(self._take())
                power = Node("neg", (self._atom(),)) if is_negative else self._atom()
            else:
                base = self._atom()
        argument = self._argument()
        if base is not None and name != "log":
            raise FormulaError(f"{name} has no base.")
        inverse = Node("neg", (Node("number", value=Fraction(1)),))
        if power == inverse and f"arc{name}" in FUNCTIONS:
            return Node(f"arc{name}", (argument,))
        node = Node(name, (argument,) if base is None else (argument, base))
        return node if power is None else Node("^", (node, power))

    def _argument(self) -> Node:
        """What stands in brackets, or the factors up to the next sign or function."""
        if self.token in ("(", "[", "{", "|"):
            return self._atom()
        is_negative = self.token == "-" and bool(self._take())
        factors = [self._power()]
        while self._starts_factor() and self.token[1:] not in FUNCTIONS and self.token not in ("(", "["):
            factors.append(self._power())
        node = Node("*", tuple(factors))
        return Node("neg", (node,)) if is_negative else node


def _symbol(token: str) -> Node:
    name = re.sub(r"[\s{}⟦⟧]", "", token)
    if name in _CONSTANTS:
        return Node("constant", value=_CONSTANTS[name])
    if name.split("_")[0][1:] in _UNREADABLE:
        raise FormulaError(f"'{name}' is not read.")
    return Node("variable", value=name)


def _number(token: str) -> Fraction:
    mantissa, _, exponent = token.lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_BITS // 4:
        raise FormulaError(f"{token} is too large or too small.")
    return Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)


def _exact(node: Node) -> Fraction:
    """The rational value. Raises FormulaError where there is none."""
    if node.name == "number":
        assert isinstance(node.value, Fraction)
        return node.value
    values = [_exact(argument) for argument in node.arguments]
    match node.name, values:
        case "+", _:
            value = sum(values, Fraction(0))
        case "*", _:
            value = math.prod(values, start=Fraction(1))
        case "inverse", [first]:
            value = 1 / first
        case "neg", [first]:
            value = -first
        case "^", [base, exponent]:
            value = _power(base, exponent)
        case "root", [base, index]:
            value = _power(base, 1 / index)
        case "abs", [first]:
            value = abs(first)
        case "floor", [first]:
            value = Fraction(math.floor(first))
        case "ceil", [first]:
            value = Fraction(math.ceil(first))
        case "!", [first]:
            value = Fraction(math.factorial(_small(first)))
        case "binom", [first, second]:
            value = Fraction(math.comb(_small(first), _small(second)))
        case _:
            raise FormulaError(f"{node.name} has no rational value.")
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise FormulaError("the value is too long.")
    return value


def _small(value: Fraction) -> int:
    if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise FormulaError(f"no factorial of {float(value) if abs(value) < 10**9 else 'a large number'} is computed.")
    return int(value)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """`base` to the power of `exponent` where that is rational."""
    if exponent.denominator != 1:
        base, exponent = _root(base, exponent.denominator), Fraction(exponent.numerator)
    if abs(base) == 1:
        return base if exponent % 2 else Fraction(1)
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > 2 * MAX_BITS:
        raise FormulaError("the power is too long.")
    return Fraction(base**exponent.numerator)


def _root(base: Fraction, degree: int) -> Fraction:
    if base < 0 or degree > 64:
        raise FormulaError("the root is not rational.")
    return Fraction(_integer_root(base.numerator, degree), _integer_root(base.denominator, degree))


def _integer_root(value: int, degree: int) -> int:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    if low**degree != value:
        raise FormulaError("the root is not rational.")
    return low
