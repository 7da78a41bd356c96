"""Argument parsing whose errors are one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from relay_lightning.commands.sentences import CLASS, condense_parser_message
from relay_lightning.commands.trust import require_trust
from relay_lightning.data.source import SourceMapping
from relay_lightning.terminal import print_error


class OneSentenceErrors:
    """Mixin for an ArgumentParser: an error is one line that names the key and, for a misspelt one, the likely key."""

    def parse_args(self, args: Any = None, *rest: Any, **options: Any) -> Namespace:
        """The parsed arguments. Raises ValueError for trust that a configuration file gives, see `require_trust`."""
        parsed = super().parse_args(args, *rest, **options)  # type: ignore[misc]
        require_trust(parsed, sys.argv[1:] if args is None else args)
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the sentence and exits with code 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        is_of_source = "SourceMapping" in message and "Unexpected keys" in message
        keys = [*SourceMapping.__annotations__] if is_of_source else [action.dest for action in parser._actions]
        keys += _init_arguments(message)
        print_error(condense_parser_message(message, keys))
        raise SystemExit(2) from ex


class CommandParser(OneSentenceErrors, ArgumentParser):
    """The parser of the subcommands that are plain functions."""


def run_function(function: Callable[..., None], arguments: list[str], *, is_positional: bool = False) -> None:
    """Calls `function` with the parameters that the command line (and its `--config` files) give it.

    `is_positional` takes the parameters without a default by their place instead of by their name.
    """
    description = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
    parser = CommandParser(
        prog=f"python -m relay_lightning {function.__name__.removesuffix('_')}", description=description
    )
    parser.add_argument("--config", action="config", help="YAML file of the options below")
    parser.add_function_arguments(function, as_group=False, as_positional=is_positional)
    parsed = parser.parse_args(arguments)
    del parsed["config"]
    function(**parser.instantiate_classes(parsed).as_dict())


def _init_arguments(message: str) -> list[str]:
    """Arguments of the class that the message complains about."""
    match = CLASS.search(message)
    if not match:
        return []
    module_name, _, class_name = match[1].rpartition(".")
    found: Any = getattr(import_module(module_name), class_name)
    return list(inspect.signature(found).parameters)
