"""Which errors are addressed to the user, and the one sentence that each of them gets."""

from __future__ import annotations

import difflib
import errno
import linecache
import re
from collections.abc import Iterable, Iterator

from relay_lightning.terminal import MAX_VALUE_CHARACTERS, shorten

SPEAKERS = ("relay_lightning.", "relay_kernels.", "lightning.", "torch.optim.")
"""Packages whose `raise` statements are addressed to the user: own ones, Lightning, and PyTorch's optimizers."""
ADDRESSED = (ValueError, RuntimeError, OSError, ModuleNotFoundError)
"""Types that they raise with a sentence for the user; any other type is a bug."""
ABSENT_PACKAGE = re.compile(r"Requirement '[^']+' not met.*")
"""Lightning's message about a class whose package is not installed."""
NOT_A_CLASS = re.compile(r"Expected a path but \S+ either not accessible")
NO_MODULE = re.compile(r"No module named '([^']+)'")
NO_VALUE = re.compile(r"argument --(\S+): expected one argument")
UNUSABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
"""Errors of the file system that are the user's to mend, wherever they are met."""
NOISE = re.compile(
    "Does not validate against any|Subtypes:|Errors:|Given value"
    "|Expected a <class 'NoneType'>|Expected a path|Expected a dot import path"
)
KEY = re.compile(r'Parser key "([^"]+)":?\s*(.*)')
CLASS = re.compile(r"Problem with given class_path '([^']+)':?")
GIVEN = re.compile(r"Given value: (.*)")
UNKNOWN = re.compile(
    r"(?:[Oo]ption '([^']+)'(?: is not accepted|$)|unrecognized arguments: (\S+).*|Unexpected keys: {'([^']+)'.*)"
)
EXPECTED = (
    (re.compile(r"Expected a (?:typing\.)?Literal\[(.*?)\]"), r"expected one of \1"),
    (re.compile(r"Expected an? <class '(?:[\w.]*\.)?(\w+)'>"), r"expected \1"),
    (re.compile(r"\. Got value: (.*)"), r", got '\1'"),
    (re.compile(r" or expected (?:one of )?"), " or "),
)
"""How the parser speaks of types, and how a person does."""


def user_sentence(error: BaseException) -> str | None:
    """The sentence of an error that is addressed to the user; None for one that is a bug and needs its traceback.

    Addressed is what a `raise` statement of this project, of Lightning or of an optimizer says, a full disk, and a file
    or folder that cannot be used.
    """
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno == errno.ENOSPC:
            return f"The disk is full: {link}."
        if isinstance(link, OSError) and link.errno in UNUSABLE and link.filename is not None:
            return f"{link.filename} cannot be used: {link.strerror}."
        if isinstance(link, ADDRESSED) and _is_sentence(link):
            return _one_line(link)
        if type(link).__name__ == "MisconfigurationException":  # Lightning's own word to the user
            return _one_line(link)
        if absent := ABSENT_PACKAGE.search(str(link)):  # the parser's many lines on a class that it could not build
            return absent[0]
    return None


def condense_parser_message(message: str, known_keys: Iterable[str] = ()) -> str:
    """One line from a parser's message of many: the full key, then what is wrong with it.

    An unknown key is followed by the most similar of `known_keys`.
    """
    path: list[str] = []
    wrong: list[str] = []
    for raw in message.splitlines():
        line = shorten(raw.strip(" -\t"))
        if match := KEY.match(line):
            path.append(match[1])
            line = match[2].strip()
        if line and not CLASS.match(line) and not NOISE.match(line) and line not in wrong:
            wrong.append(line)
    key = ".".join(part for part in path if part not in ("config", "subcommand"))
    wrong = [line for line in wrong if not any(other.startswith(f"{line}. ") for other in wrong)]
    given = GIVEN.search(message)
    if NOT_A_CLASS.search(message) and not CLASS.search(message):
        wrong = []  # what else the key accepts says nothing about a misspelt class
    if absent := NO_MODULE.search(message):
        wrong = [f"the package '{absent[1]}' is not installed"]
    elif bare := NO_VALUE.search(message):
        key, wrong = bare[1], ["a value is missing"]
    sentence = " or ".join(wrong) or (f"'{given[1]}' cannot be used here" if given else " ".join(message.split()))
    for pattern, plain in EXPECTED:
        sentence = pattern.sub(plain, sentence)
    if given and sentence.startswith("expected ") and ", got " not in sentence:
        sentence += f", got '{shorten(given[1], MAX_VALUE_CHARACTERS)}'"
    sentence = _explain_unknown(sentence, key, known_keys)
    return f"{key}: {sentence}" if key else sentence


def _explain_unknown(sentence: str, prefix: str, known_keys: Iterable[str]) -> str:
    match = UNKNOWN.search(sentence)
    if not match:
        return sentence
    unknown = shorten((match[1] or match[2] or match[3]).split("=")[0].removeprefix("--"), MAX_VALUE_CHARACTERS)
    known = [key.removeprefix(f"{prefix}.") if prefix else key for key in known_keys]
    similar = _same_elsewhere(unknown, known) or difflib.get_close_matches(unknown, known, n=1)
    return f"there is no key '{unknown}'" + (f"; did you mean '{similar[0]}'?" if similar else "")


def _same_elsewhere(unknown: str, known: Iterable[str]) -> list[str]:
    """`unknown` under the known keys that end in its first part: `optimizer.lr` is in `model.optimizer`."""
    head, dot, rest = unknown.partition(".")
    return [f"{key}{dot}{rest}" for key in known if key.endswith(f".{head}")]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_sentence(error: BaseException) -> bool:
    """Whether a `raise` statement of a speaker raised the error, not something that it called."""
    traceback = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    is_spoken = str(frame.f_globals.get("__name__", "")).startswith(SPEAKERS)
    line = linecache.getline(frame.f_code.co_filename, traceback.tb_lineno)
    return is_spoken and line.lstrip().startswith("raise")
