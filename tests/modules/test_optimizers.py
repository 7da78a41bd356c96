"""Optimizers and schedules: what works is returned to Lightning, what cannot work is refused before training."""

from __future__ import annotations

import math
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch.nn import Parameter
from torch.optim import lr_scheduler

from relay_lightning.modules.optimizers import build_optimizers

SGD = partial(torch.optim.SGD, lr=0.1)


def parameters(*shapes: tuple[int, ...]) -> list[Parameter]:
    return [Parameter(torch.zeros(shape)) for shape in shapes]


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor", "RMSprop", "NAdam", "ASGD"])
def test_optimizers_of_one_gradient_a_step_are_taken(name):
    built = build_optimizers(getattr(torch.optim, name), None, parameters((2, 3), (3,)), max_steps=4)
    assert type(built["optimizer"]).__name__ == name
    assert "lr_scheduler" not in built


@pytest.mark.parametrize(
    ("name", "shapes", "sentence"),
    [
        ("Muon", [(2, 3), (3,)], r"model.optimizer: Muon only supports 2D .*torch.optim.AdamW .*model.lora"),
        ("SparseAdam", [(2, 3)], r"model.optimizer: SparseAdam does not support dense gradients"),
        ("LBFGS", [(2, 3)], r"model.optimizer: LBFGS evaluates the loss several times a step"),
    ],
)
def test_optimizers_that_cannot_work_are_refused(name, shapes, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_optimizers(getattr(torch.optim, name), None, parameters(*shapes), max_steps=4)


def test_muon_is_taken_when_all_trained_weights_are_matrices():
    built = build_optimizers(torch.optim.Muon, None, parameters((2, 3), (4, 2)), max_steps=4)
    assert isinstance(built["optimizer"], torch.optim.Muon)


@pytest.mark.parametrize(
    "schedule",
    [
        partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2),
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=4),
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0 / (step + 1)),
    ],
)
def test_schedules_advance_once_a_step(schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a schedule that is advanced before its optimizer
        built = build_optimizers(SGD, schedule, parameters((2,)), max_steps=4)
    assert built["lr_scheduler"]["interval"] == "step"
    assert built["lr_scheduler"]["scheduler"].last_epoch == 0  # the trial was another one


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        (partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=3), r"OneCycleLR ends after 3 steps.*is 4; set"),
        (partial(lr_scheduler.LambdaLR, lr_lambda=math.sqrt), r"model.lr_scheduler: "),
        (lr_scheduler.ReduceLROnPlateau, r"lightning.pytorch.cli.ReduceLROnPlateau with init_args.monitor"),
    ],
)
def test_schedules_that_cannot_work_are_refused(schedule, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_optimizers(SGD, schedule, parameters((2,)), max_steps=4)


@pytest.mark.parametrize(("monitor", "is_strict"), [("reward", True), ("val/accuracy", False)])
def test_plateau_schedule_brings_its_monitor(monitor, is_strict):
    built = build_optimizers(SGD, partial(ReduceLROnPlateau, monitor=monitor), parameters((2,)), max_steps=4)
    assert built["lr_scheduler"]["monitor"] == monitor
    assert built["lr_scheduler"]["strict"] is is_strict
