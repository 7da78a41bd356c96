"""Argument parsing whose errors are one sentence."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from itertools import zip_longest
from typing import Any, NoReturn, get_args

from jsonargparse import ArgumentParser

from relay_lightning.commands.sentences import CLASS, condense_parser_message
from relay_lightning.commands.trust import require_trust
from relay_lightning.data.source import SourceMapping
from relay_lightning.terminal import print_error


class OneSentenceErrors:
    """Mixin for an ArgumentParser: an error is one line that names the key and, for a misspelt one, the likely key.

    A flag without a value is true: `--trainer.fast_dev_run`.
    """

    nested_keys: Mapping[str, Any] = {}
    """Key -> type of the arguments of classes that the command line chooses, which no action stands for."""

    def parse_args(self, args: Sequence[str] | None = None, *positional: Any, **options: Any) -> Any:
        """Parses `args`, with `true` behind every flag that stands alone."""
        args = self._with_true(list(sys.argv[1:] if args is None else args))
        return super().parse_args(args, *positional, **options)  # type: ignore[misc]

    def _with_true(self, args: Sequence[str]) -> list[str]:
        types = {action.dest: getattr(action, "_typehint", None) for action in _all_actions(self)}
        types |= self.nested_keys
        completed: list[str] = []
        for argument, following in zip_longest(args, args[1:], fillvalue="--"):
            completed.append(argument)
            key = argument.removeprefix("--").replace(".init_args.", ".")
            if argument.startswith("--") and following.startswith("--") and _is_flag(types.get(key)):
                completed.append("true")
        return completed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the sentence and exits with code 2."""
        parser = getattr(ex, "subcommand_parser", None) or self
        is_of_source = "SourceMapping" in message and "Unexpected keys" in message
        keys = [*SourceMapping.__annotations__] if is_of_source else [action.dest for action in parser._actions]
        keys += [*self.nested_keys, *_init_arguments(message)]
        print_error(condense_parser_message(message, keys))
        raise SystemExit(2) from ex


class CommandParser(OneSentenceErrors, ArgumentParser):
    """The parser of the subcommands that are plain functions."""


def run_function(function: Callable[..., None], arguments: list[str], *, positional: str | None = None) -> None:
    """Calls `function` with the parameters that the command line (and its `--config` files) give it.

    positional: a parameter with a default that is given by its place instead of by its name.
    """
    description = (inspect.getdoc(function) or "").partition("\nArgs:")[0].strip()
    parser = CommandParser(
        prog=f"python -m relay_lightning {function.__name__.removesuffix('_')}", description=description
    )
    parser.add_argument("--config", action="config", help="YAML file of the options below")
    if positional is not None:
        default = inspect.signature(function).parameters[positional].default
        parser.add_argument(positional, nargs="?", default=default, help="given by its place")
    parser.add_function_arguments(function, as_group=False, skip={positional} if positional else None)
    parsed = parser.parse_args(arguments)
    require_trust(parsed, arguments)
    del parsed["config"]
    function(**parser.instantiate_classes(parsed).as_dict())


def _all_actions(parser: Any) -> Iterator[Any]:
    """The actions of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _all_actions(subparser)


def _is_flag(type_hint: Any) -> bool:
    return type_hint is bool or bool in get_args(type_hint)


def _init_arguments(message: str) -> list[str]:
    """Arguments of the class that the message complains about."""
    match = CLASS.search(message)
    if not match:
        return []
    module_name, _, class_name = match[1].rpartition(".")
    found: Any = getattr(import_module(module_name), class_name)
    return list(inspect.signature(found).parameters)
