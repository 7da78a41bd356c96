r"""Plain notation: one spelling for answers that people and language models write in many ways.

Delimiters, spacing and styles disappear, characters become LaTeX (`½`, `x²`, `√2`), and every word is enclosed in
`⟦ ⟧`, whether it stood in `\text{}` or bare, so that no later step can take it for a product of variables.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from fractions import Fraction

FUNCTIONS = frozenset(
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan arccot exp log ln lg sqrt max min gcd lcm det".split()
)

_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega"
    " Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega".split()
)

_SHORT_WORDS = frozenset("am an as at be by do go he hi if in is it me my no of oh ok on or ox pm so to up us we".split())
_SHORT_UNITS = frozenset("mm cm km kg mg ml kl hr ft yd lb oz mi sq hz kw kj mj cc in".split())
_ABBREVIATIONS = frozenset("mph kph hrs lbs yrs cms kms kgs mls gms sqft kwh min cts nth".split())
"""Words without a vowel; any other run of consonants is a product of variables, such as GMm."""

_PRODUCTS = ("abcd", "mnk", "pqrst", "uvw", "xyz")
"""Letters that stand together in a product of three or more variables; other long runs of letters are words."""

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑﹣－", "-"),
        **dict.fromkeys("\u2009\u202f\u200a\u2006", "\\,"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2005\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", None),
        **dict.fromkeys("°˚º∘", "\\degree "),
        **dict.fromkeys("·⋅•∙", "\\cdot "),
        **dict.fromkeys("∅⌀", "\\emptyset "),
        "×": "\\times ", "÷": "/", "⁄": "/", "∕": "/", "±": "\\pm ", "∓": "\\mp ", "∞": "\\infty ", "≤": "\\le ",
        "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∩": "\\cap ",
        "∈": "\\in ", "…": "\\ldots ", "⋯": "\\ldots ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "⌊": "\\lfloor ",
        "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "⟨": "\\langle ", "⟩": "\\rangle ", "′": "'", "ϕ": "\\phi ",
        "⟦": "[", "⟧": "]", "€": "⟦euro⟧", "£": "⟦pound⟧", "¥": "⟦yen⟧", "％": "%", "µ": "\\mu ",
    }
    | {chr(0xFF01 + offset): chr(0x21 + offset) for offset in range(94)}  # full width
    | {
        letter: f"\\{name} "
        for name in _GREEK
        for letter in [unicodedata.lookup(f"GREEK {'CAPITAL' if name[0].isupper() else 'SMALL'} LETTER "
                                          f"{name.upper().replace('LAMBDA', 'LAMDA')}")]
    }
)  # fmt: skip

_SCRIPTS = {
    mark: str.maketrans(characters, "0123456789+-()n"[: len(characters)])
    for mark, characters in (("^", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ"), ("_", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ"))
}

_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_TEXT = re.compile(
    rf"\\(text(?:bf|it|rm|sf|tt|normal|sc)?|mbox|hbox|emph|underline|operatorname\*?|math(?:rm|bf|it|sf|tt|normal)|"
    rf"boldsymbol|bm|pmb)\s*{_GROUP}"
)
_WORD = re.compile(
    r"\\(?:begin|end|mathbb|mathcal|mathscr|mathfrak)\s*\{[^{}]*\}|\\[a-zA-Z]+|⟦[^⟧]*⟧"  # these stay
    r"|((?:(?:np|math|numpy)\.)?[^\W\d_]{2,}(?:['’-](?=[^\W\d_]{2})[^\W\d_]+)*)"
)
_LETTERS = re.compile(r"\\[a-zA-Z]+|\\.|⟦[^⟧]*⟧|[^\W\d_]+(?:['’-][^\W\d_]+)*")

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", "⟦dollar⟧"),
        (r"\\[()]|\\[\[\]]|\$|\\\s*$|\ue002\s*$", " "),
        (r"(?<=\d)\s*(?:\{,\}|\\,|,\\!)\s*(?=\d{3}(?!\d))", ""),  # thousands, said to be so
        (r"\{,\}", ","),
        (r"\\!|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|bf|rm|it|tt)(?![a-zA-Z])", ""),
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])", ""),
        (r"\\[hv]space\*?\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}", " "),
        (r"\\[,;:> ]|~|\\(?:quad|qquad|thinspace|enspace|medspace|thickspace|newline)(?![a-zA-Z])", " "),
        (r"\\textcolor\s*\{[^{}]*\}|\\(?:fbox|boxed|ensuremath)(?![a-zA-Z])", ""),
        (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\^\s*\{?\s*(?:\\circ|\\text\s*\{o\})\s*\}?|\\(?:degree|textdegree)(?![a-zA-Z])(?:\{\})?", "°"),
        (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"\\([%_&#])", r"\1"),
        (r"\\(?:varnothing|empty)(?![a-zA-Z])", r"\\emptyset"),
        (r"\\leq(?:slant)?(?![a-zA-Z])|<=", r"\\le "),
        (r"\\geq(?:slant)?(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|\.\.\.", r"\\ldots "),
        (r"\\[lr]vert(?![a-zA-Z])|\\vert(?![a-zA-Z])", "|"),
        (r"\\[lr]brace(?![a-zA-Z])", ""),
        (r"\\var(?=epsilon|theta|phi|rho|sigma|pi|kappa)", r"\\"),
        (r"\\(?:ast|star)(?![a-zA-Z])", "*"),
        (r"\*\*(?=[\w{(+-])(?<=[\w)}]\*\*)", "^"),
        (r"\\div(?![a-zA-Z])", "/"),
    )
)
_MIXED = re.compile(
    r"(?<![\w.^}])(?<!\d\s)(\d+)(?:\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}|\s+(\d+)\s*/\s*(\d+)(?![\w.]))"
)


@functools.lru_cache(maxsize=4096)
def plain_notation(text: str) -> str:
    """The answer in plain notation. The empty string stays for one that holds nothing but delimiters and spacing."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(_vulgar_fraction(character) for character in text).translate(_CHARACTERS)
    text = re.sub(r"([√∛∜])\s*(\d+|[a-z](?![a-z])|\\pi|(?=[({]))", _root, text)
    for mark, table in _SCRIPTS.items():
        characters = "".join(map(chr, table))
        text = re.sub(f"[{characters}]+", lambda run, m=mark, t=table: f"{m}{{{run[0].translate(t)}}}", text)
    text = text.replace("\\\\", "\ue002")  # a new row, whatever follows
    text = text.replace("\\{", "\ue000").replace("\\}", "\ue001")  # set braces are no groups
    text = re.sub(r"\\lbrace(?![a-zA-Z])", "\ue000", re.sub(r"\\rbrace(?![a-zA-Z])", "\ue001", text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if bold := re.fullmatch(r"\s*\*\*([^*]+)\*\*\s*", text):  # Markdown
        text = bold[1]
    if whole := _TEXT.fullmatch(text.strip()):
        text = whole[2]
    for _ in range(4):  # text in text
        text, count = _TEXT.subn(_plain_text, text)
        if not count:
            break
    text = re.sub(r"_\s*\{\s*\\(max|min)\s*\}", r"_{⟦\1⟧}", _full_arguments(_WORD.sub(_word, text)))
    text = re.sub(r"°\s*⟦?([CF])⟧?(?![a-zA-Z])", r"°⟦\1⟧", text)
    text = _MIXED.sub(_mixed_number, " ".join(text.split()))
    return text.replace("\ue000", "\\{").replace("\ue001", "\\}").replace("\ue002", "\\\\")


def without_marks(plain: str) -> str:
    """The plain notation with bare words."""
    return plain.replace("⟦", "").replace("⟧", "")


def _vulgar_fraction(character: str) -> str:
    if unicodedata.decomposition(character).startswith("<fraction>"):
        value = Fraction(unicodedata.numeric(character)).limit_denominator(10)
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    return character


def _root(match: re.Match[str]) -> str:
    index = {"√": "", "∛": "[3]", "∜": "[4]"}[match[1]]
    return rf"\sqrt{index}" + (f"{{{match[2]}}}" if match[2] else "")


def _plain_text(match: re.Match[str]) -> str:
    """The content of a text command with its words marked; a single letter of a font of mathematics is a variable."""
    command, content = match.groups()
    if command.startswith(("math", "bold", "bm", "pmb")) and len(content.strip()) == 1:
        return f" {content} " if content.strip().isdigit() else content
    return _LETTERS.sub(lambda word: word[0] if word[0][0] in "\\⟦" else _marked(word[0]), content)


def _word(match: re.Match[str]) -> str:
    """A bare word marked; function names and Greek letters become commands, products of variables stay."""
    word = match[1]
    if word is None:
        return match[0]
    word = word.split(".")[-1]
    before, after = match.string[: match.start()], match.string[match.end() :]
    if word in ("min", "sec") and re.search(r"\d\s*$", before) and re.match(r"\s*(?:$|[.,;/])", after):
        return f"⟦{word}⟧"  # a time
    return word if _is_product(word, before, after) else _marked(word)


def _is_product(word: str, before: str, after: str) -> bool:
    """True for letters that stand for variables side by side: `ab`, `xyz`, `GMm`, the `at` of `e^{at}`."""
    if not word.isascii() or word in _GREEK or word in FUNCTIONS:
        return False
    if len(word) == 2:
        if word.lower() in _SHORT_UNITS and re.search(r"(?:\d|\\pi|[⟧)}/]|\\cdot)\s*$", before):
            return re.match(r"\s*[\\(_a-zA-Z=]", after) is not None and not after.lstrip().startswith("\\cdot")
        is_apart = re.search(r"(?:^|[\s,;:])\(?$", before) and re.match(r"\)?(?:$|[\s,;:.!?])", after)
        return not (word.lower() in _SHORT_WORDS and is_apart)
    is_short = len(word) <= 4 and not set(word.casefold()) & set("aeiouy")
    return (is_short and word.lower() not in _ABBREVIATIONS) or any(
        len(set(word)) == len(word) and set(word) <= set(letters) for letters in _PRODUCTS
    )


def _marked(word: str) -> str:
    if word in FUNCTIONS or word in _GREEK:
        return f"\\{word} "
    if word in ("infinity", "infty", "inf", "oo"):
        return "\\infty "
    return f"⟦{word}⟧"


def _full_arguments(text: str) -> str:
    r"""`\frac12` and `\sqrt2` with the braces that TeX lets people leave out, `\sqrt(2)` with those it does not."""
    argument = r"\s*(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|\d|[a-zA-Z](?![a-zA-Z])|\\[a-zA-Z]+)"
    for _ in range(4):  # a fraction in a fraction
        before, text = text, re.sub(rf"\\(frac|binom){argument}{argument}", _braced, text)
        if text == before:
            break
    text = re.sub(r"\\sqrt\s*(\[[^\[\]]*\])?\s*(\d|[a-zA-Z])", r"\\sqrt\1{\2}", text)
    return re.sub(r"\\sqrt\s*(\[[^\[\]]*\])?\s*(\([^()]*\))", r"\\sqrt\1{\2}", text)


def _braced(match: re.Match[str]) -> str:
    command, *arguments = match.groups()
    return f"\\{command}" + "".join(part if part.startswith("{") else f"{{{part}}}" for part in arguments)


def _mixed_number(match: re.Match[str]) -> str:
    whole, *parts = (part for part in match.groups() if part)
    numerator, denominator = parts
    if not 0 < int(numerator) < int(denominator):
        return match[0]  # a product, or no number at all
    return rf"({whole}+\frac{{{numerator}}}{{{denominator}}})"
