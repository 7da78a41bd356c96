"""RolloutPrinter: now and then a few rollouts on the terminal, the teacher's tokens in colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.text import Text
from typing_extensions import override

from relay_lightning import progress
from relay_lightning.evaluation.transcript import has_colour, transcript, verbatim
from relay_lightning.terminal import escape_terminal
from relay_lightning.types import Rollout, RolloutGroup


class RolloutPrinter(Callback):
    """Prints rollouts of one prompt during training.

    Args:
        every_n_train_steps: optimiser steps from one look to the next; 0 prints nothing.
        num_rollouts: rollouts shown at a time; the first of them that called comes first.
    """

    def __init__(self, every_n_train_steps: int = 50, num_rollouts: int = 2) -> None:
        if every_n_train_steps < 0 or num_rollouts < 1:
            raise ValueError(
                "printer.every_n_train_steps must be at least 0 and printer.num_rollouts at least 1, "
                f"but they are {every_n_train_steps} and {num_rollouts}."
            )
        self.every_n_train_steps = every_n_train_steps
        self.num_rollouts = num_rollouts
        self._printed_step = -1

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        is_due = self.every_n_train_steps and step % self.every_n_train_steps == 0 and step != self._printed_step
        if not is_due or not trainer.is_global_zero or not pl_module.last_groups:
            return
        self._printed_step = step
        group = max(pl_module.last_groups, key=_num_callers)
        token_bytes = pl_module.engine.protocol.token_bytes
        shown = render_group(
            group, step, token_bytes, self.num_rollouts, marks_teacher=not has_colour(progress.console)
        )
        progress.console.print(shown, soft_wrap=True)
        for logger in pl_module.loggers:
            if isinstance(logger, TensorBoardLogger):
                marked = render_group(group, step, token_bytes, self.num_rollouts, marks_teacher=True)
                logger.experiment.add_text("rollouts", verbatim(marked.plain), step)


def render_group(
    group: RolloutGroup,
    step: int,
    token_bytes: Sequence[bytes | None],
    num_rollouts: int,
    *,
    marks_teacher: bool = False,
) -> Text:
    """The question and some of its rollouts, those that called first, none twice.

    `marks_teacher` marks the teacher's text by words as well as by colour.
    """
    text = Text()
    text.append(f"\nstep {step} · {escape_terminal(group.prompt.question)}\n", style="bold")
    callers_first = sorted(group.rollouts, key=lambda rollout: rollout.completion.num_calls == 0)
    different = {tuple(rollout.completion.token_ids): rollout for rollout in reversed(callers_first)}
    for rollout in list(reversed(different.values()))[:num_rollouts]:
        text.append(_headline(rollout), style="cyan")
        text.append_text(transcript(rollout.completion, token_bytes, marks_teacher=marks_teacher))
        text.append("\n")
    return text


def _num_callers(group: RolloutGroup) -> int:
    return sum(rollout.completion.num_calls > 0 for rollout in group.rollouts)


def _headline(rollout: Rollout) -> str:
    verdict = "correct" if rollout.is_correct else "wrong"
    completion = rollout.completion
    return f"{verdict}, reward {rollout.reward:.2f}, teacher {completion.num_teacher_tokens}/{completion.num_tokens}: "
