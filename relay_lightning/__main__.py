"""`python -m relay_lightning <subcommand>`: finds the subcommand, and gives every expected failure one sentence.

Nothing heavy is imported before the subcommand is known, so `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from relay_lightning import __version__
from relay_lightning.interruption import Interrupted, stop_signals
from relay_lightning.terminal import print_error

TRAINER_SUBCOMMANDS = {
    "fit": "train a stage: warm-up or GRPO; ends with a table of what was reached",
    "validate": "figures of the validation problems",
    "test": "figures of the held-out problems",
    "predict": "completions of the held-out problems",
}
OTHER_SUBCOMMANDS = {
    "plan": "what a configuration of `fit` needs of a device's memory, without loading weights",
    "filter": "keep the problems that the teacher alone solves often enough",
    "synthesize": "sample warm-up completions from the student itself",
    "export": "turn a checkpoint into a folder that Transformers opens",
    "generate": "answer one question, with the teacher's tokens in colour",
}
USAGE_ERROR = 2
"""Exit code of a refused command, as argparse has it."""


def main() -> None:
    """Runs the command line of this process and exits."""
    if not sys.stderr.isatty():  # in a file, bars of other libraries are fragments
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line; returns the exit code."""
    if arguments[:1] == ["--version"]:
        print(f"relay-lightning {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else USAGE_ERROR
    subcommand, *rest = arguments
    if subcommand not in TRAINER_SUBCOMMANDS | OTHER_SUBCOMMANDS:
        return _refuse(
            f"there is no subcommand '{subcommand}'; it is one of {', '.join(TRAINER_SUBCOMMANDS | OTHER_SUBCOMMANDS)}"
        )
    try:
        with stop_signals.handled():
            _call(subcommand, rest)
    except Interrupted as stop:
        return _refuse(stop.sentence, stop.exit_code)
    except Exception as error:
        return _report(error)
    return 0


def _call(subcommand: str, arguments: list[str]) -> None:
    if subcommand in TRAINER_SUBCOMMANDS:
        import_module("relay_lightning.cli").RelayCLI(subcommand, arguments)
    elif subcommand == "plan":
        import_module("relay_lightning.cli").PlanCLI(arguments)
    else:
        import_module(f"relay_lightning.commands.{subcommand}").main(arguments)


def _report(error: Exception) -> int:
    """One sentence for an error that is addressed to the user; a bug goes on as it is, with its traceback."""
    from relay_lightning.commands.sentences import user_sentence

    sentence = user_sentence(error)
    if sentence is None:
        raise error
    return _refuse(sentence, getattr(error, "exit_code", USAGE_ERROR))


def _refuse(sentence: str, exit_code: int = USAGE_ERROR) -> int:
    print_error(sentence)
    return exit_code


def _help() -> str:
    lines = ["usage: python -m relay_lightning <subcommand> [options]", "", "subcommands:"]
    lines += [f"  {name:<12}{text}" for name, text in (TRAINER_SUBCOMMANDS | OTHER_SUBCOMMANDS).items()]
    return "\n".join([*lines, "", "Options of a subcommand: python -m relay_lightning <subcommand> --help"])


if __name__ == "__main__":
    main()
