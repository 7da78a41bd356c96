"""NextSteps: at the end of a run, the commands that use what it made."""

from __future__ import annotations

import importlib.util
import shlex
from dataclasses import asdict, fields
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.relay.requests import CallLimits
from relay_lightning.terminal import one_line

PROGRAM = ("python", "-m", "relay_lightning")
QUESTION = "What is 12 times 12?"


class NextSteps(Callback):
    """Prints how to test, export and try the trained student, and how to look at the run."""

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and RunFolder.of(trainer).last_checkpoint.exists():
            print("\nnext:")
            for command in next_commands(trainer, pl_module):
                print(f"  {one_line(command)}")


def next_commands(trainer: Trainer, pl_module: LightningModule) -> list[str]:
    """Shell commands for the folder that the run worked in, in the order in which they can be run."""
    folder = RunFolder.of(trainer)
    exported = folder.path / "export"
    merge = ["--merge", "true"] if pl_module.lora is not None else []  # adapters alone cannot answer
    commands = [
        [*PROGRAM, "test", "--config", folder.config, "--ckpt_path", "last"],
        [*PROGRAM, "export", "--ckpt_path", folder.last_checkpoint, "--output", exported, *merge],
        [*PROGRAM, "generate", QUESTION, "--student", exported, *_teacher(pl_module), *_limits(pl_module)],
    ]
    if folder.rollouts().exists() and importlib.util.find_spec("benchmarks") is not None:  # run from a checkout
        commands.append(["python", "-m", "benchmarks.plot", "training", folder.path, folder.path / "training.png"])
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        commands.append(["tensorboard", "--logdir", folder.tensorboard])
    return [shlex.join(map(str, command)) for command in commands]


def _teacher(pl_module: LightningModule) -> list[Any]:
    if pl_module.teacher_name is None:
        return ["--teacher", "null"]
    return ["--teacher", pl_module.teacher_name, *_loading("teacher_loading", pl_module.teacher_loading)]


def _loading(key: str, loading: LoadSettings) -> list[Any]:
    """The options that differ from their defaults."""
    names = [field.name for field in fields(loading)]
    changed = [name for name in names if getattr(loading, name) != getattr(DEFAULT, name)]
    return [part for name in changed for part in (f"--{key}.{name}", str(getattr(loading, name)).lower())]


def _limits(pl_module: LightningModule) -> list[Any]:
    limits, usual = asdict(pl_module.call_limits), asdict(CallLimits())
    options = {"max_completion_tokens": pl_module.max_completion_tokens}
    options |= {name: value for name, value in limits.items() if value != usual[name]}
    return [part for name, value in options.items() for part in (f"--{name}", value)]
