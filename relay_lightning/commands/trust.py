"""Trust in the code that comes with a model: given by the command line of this call, never by a file that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import Namespace

TRUST = "trust_remote_code"
CONFIG_OPTIONS = ("config", "c")


def require_trust(parsed: Namespace, arguments: Sequence[str]) -> None:
    """Raises ValueError for a `trust_remote_code: true` that does not come from an option on the command line.

    A configuration file may be that of somebody else's run.
    """
    given = set(_given_trust(arguments))
    for path in _trusting(parsed, ()):
        options = {path, path[1:]}  # the parser of `fit` and its kin puts the subcommand first
        if not options & given:
            subject = ".".join(path[1:] if len(path) > 2 else path)
            raise ValueError(
                f"A configuration says {subject}: true, but code that comes with a model runs only if the command line "
                f"says so: add --{subject} true if you trust that model."
            )


def _given_trust(arguments: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Paths of the keys that the command line itself sets to true, configuration files left out."""
    for index, argument in enumerate(arguments):
        option, is_joined, value = argument.partition("=")
        name = option.lstrip("-")
        if not option.startswith("-") or name in CONFIG_OPTIONS:
            continue
        if not is_joined:
            following = arguments[index + 1] if index + 1 < len(arguments) else "--"
            value = "true" if following.startswith("--") else following  # a flag that stands alone is true
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError:
            continue
        yield from _trusting(read, tuple(name.split(".")))


def _trusting(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Paths below `node` at which trust is given; `init_args` is left out of them, as the command line may."""
    if path and path[-1] == TRUST and node is True:
        yield tuple(part for part in path if part != "init_args")
    items = vars(node) if isinstance(node, Namespace) else node
    if isinstance(items, Mapping):
        for key, value in items.items():
            yield from _trusting(value, (*path, str(key)))
    elif isinstance(items, list):
        for value in items:
            yield from _trusting(value, path)
