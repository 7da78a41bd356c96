"""Units and nouns behind a number: `12 cm^2`, `60 km/h`, `24 apples`, `90°`, `$18`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from relay_lightning.rewards.notation import without_marks

_NAMES = """
m meter metre|cm centimeter centimetre|mm millimeter millimetre|km kilometer kilometre|inch in inche|ft foot feet
|yd yard|mi mile|g gram gm|kg kilogram kilo|mg milligram|lb pound|oz ounce|ton tonne|s sec second|min minute|h hr hour
|day|week|month|year yr|L l liter litre|ml milliliter millilitre|degree deg ° \\degree|radian rad|dollar usd buck|cent
|euro eur|yen|N newton|J joule|W watt|V volt|A amp ampere|K kelvin|C celsius|F fahrenheit|Hz hertz|Pa pascal|mph|kph
|unit|square sq|cubic cu|mol mole|eV|people person|percentage
"""
_CANONICAL = {
    alias: names[0] for names in (group.split() for group in _NAMES.replace("\n", "").split("|")) for alias in names
}
_LETTERS = frozenset(name for name in _CANONICAL if len(name) == 1)
"""Units of one letter; any other letter behind a number is a variable."""

SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NO_UNITS = frozenset("and or mod if for when where with is are not to times plus minus over than otherwise".split())

_ATOM = r"(?:⟦[^⟧]*⟧|°|(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z]))\.?(?:\s*\^\s*(?:\{\s*-?\d+\s*\}|-?\d))?"
_JOINED = rf"{_ATOM}(?: ?(?:/|\\cdot|\*|-)? ?{_ATOM})*"
_FRACTION = rf"\\frac\s*\{{\s*{_JOINED}\s*\}}\s*\{{\s*{_JOINED}\s*\}}"
_TAIL = re.compile(rf"(?P<gap>\s*)(?P<unit>\(?(?:{_FRACTION}|{_JOINED})\)?)$")
_CURRENCY = re.compile(r"([-+]?)\s*⟦(dollar|euro|pound|yen|usd|eur|gbp|rs)⟧\s*(?=[-+]?[\d.\\(])(.*)", re.DOTALL | re.IGNORECASE)
_PART = re.compile(r"(/|⟦per⟧)?\s*(⟦[^⟧]*⟧|°|[a-zA-Z])(?:\s*\^\s*\{?\s*(-?\d+))?")


@dataclass(frozen=True, slots=True)
class Unit:
    """Powers of canonical names, such as (("m", 1), ("s", -2))."""

    powers: tuple[tuple[str, int], ...]

    def matches(self, other: Unit) -> bool:
        """True for equal units, for a bare "units", and for nouns that share a word (red apples, apples)."""
        if self == other:
            return True
        mine, others = ({name for name, _ in unit.powers} for unit in (self, other))
        if "unit" in mine | others:
            return True
        return bool(mine & others) and not (mine | others) & _KNOWN


_KNOWN = frozenset(_CANONICAL.values())


def split_unit(text: str) -> tuple[str, str]:
    """The text before a unit, and the unit as it is written; ("...", "") where there is none."""
    if money := _CURRENCY.fullmatch(text):
        return (money[1] + money[3]).strip(), f"⟦{money[2]}⟧"
    if re.search(r"\\(?:a?r?c?(?:sin|cos|tan)|cot|sec|csc)[^a-zA-Z].*°$", text):
        return text, ""  # the angle of a function
    for start in _starts(text):
        match = _TAIL.match(text, start)
        if match and _is_unit(match["unit"], has_gap=bool(match["gap"]) or "⟦" in match["unit"]):
            return text[:start].strip(), match["unit"]
    return text, ""


def read_unit(text: str) -> tuple[Unit | None, int]:
    """The unit, or None for an empty text, and the factor of words such as million."""
    powers: dict[str, int] = {}
    factor, sign, dimension = 1, 1, 1
    fraction = re.fullmatch(r"\\frac\s*\{(.*)\}\s*\{(.*)\}", text)
    for division, name, power in _PART.findall(f"{fraction[1]}/{fraction[2]}" if fraction else text):
        sign = -1 if division else sign
        word = _canonical(without_marks(name))
        if word in SCALES and not powers:
            factor *= SCALES[word]
        elif word in ("square", "cubic"):
            dimension = 2 if word == "square" else 3
        elif word not in ("per", "of", "the", "a"):
            powers[word] = powers.get(word, 0) + sign * int(power or 1) * dimension
            dimension = 1
        if word == "per":
            sign = -1
    return (Unit(tuple(sorted(powers.items()))) if powers else None), factor


def _starts(text: str) -> list[int]:
    """Where a unit may begin: behind a digit, a bracket or a symbol, the longest unit first."""
    return [match.end() for match in re.finditer(r"[\d)}\]!.](?=\s*[⟦°\\(a-zA-Z])|\\pi(?=\s*[⟦°\\(])", text)] + [
        match.end() for match in re.finditer(r"[a-zA-Z](?=\s*[⟦°])", text)
    ]


def _is_unit(text: str, *, has_gap: bool) -> bool:
    words = [without_marks(name) for _, name, _ in _PART.findall(text.replace("\\frac", "").replace("\\cdot", ""))]
    marked = {without_marks(word) for word in re.findall("⟦[^⟧]*⟧", text)}
    if any(word.casefold() in _NO_UNITS for word in marked):
        return False
    return all(word in marked or word == "°" or (has_gap and word in _LETTERS) for word in words)


def _canonical(word: str) -> str:
    for name in (word, word.casefold(), word.casefold().removesuffix("s"), word.casefold().removesuffix("es")):
        if name in _CANONICAL:
            return _CANONICAL[name]
    return word.casefold().removesuffix("s") if len(word) > 3 else word.casefold()
