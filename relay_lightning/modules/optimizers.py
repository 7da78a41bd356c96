"""Optimizer and schedule of a module, tried out before training so that what cannot work ends in one sentence."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from relay_lightning.modules.monitors import VALIDATION

MakeOptimizer = Callable[[Sequence[Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


def build_optimizers(
    make_optimizer: MakeOptimizer,
    make_scheduler: MakeScheduler | None,
    parameters: Sequence[Parameter],
    max_steps: int,
) -> dict[str, Any]:
    """Returns what `LightningModule.configure_optimizers` returns; the schedule advances once per optimizer step.

    `max_steps` is -1 if unknown. Raises ValueError naming what is wrong with either.
    """
    _try_out(make_optimizer, make_scheduler, parameters[0].device)
    with _one_sentence("model.optimizer", _advice(parameters)):
        optimizer = make_optimizer(parameters)
    if make_scheduler is None:
        return {"optimizer": optimizer}
    scheduler = make_scheduler(optimizer)
    length = getattr(scheduler, "total_steps", None)
    if length is not None and length < max_steps:
        raise ValueError(
            f"model.lr_scheduler: {type(scheduler).__name__} ends after {length} steps, but trainer.max_steps is "
            f"{max_steps}; set its total_steps to {max_steps}."
        )
    schedule = {"scheduler": scheduler, "interval": "step"}
    if isinstance(scheduler, ReduceLROnPlateau):
        schedule |= {"monitor": _monitor(scheduler), "strict": not _monitor(scheduler).startswith(VALIDATION)}
    return {"optimizer": optimizer, "lr_scheduler": schedule}


def _try_out(make_optimizer: MakeOptimizer, make_scheduler: MakeScheduler | None, device: torch.device) -> None:
    """Runs one step of optimizer and schedule on a weight of four zeros, and takes their states."""
    weight = Parameter(torch.zeros(2, 2, device=device))
    weight.grad = torch.zeros_like(weight)
    with _one_sentence("model.optimizer"):
        optimizer = make_optimizer([weight])
        _require_single_gradient(optimizer)
    scheduler = None
    if make_scheduler is not None:
        with _one_sentence("model.lr_scheduler"):
            scheduler = make_scheduler(optimizer)
            scheduler.state_dict()
    with _one_sentence("model.optimizer"):
        optimizer.step()
        optimizer.state_dict()
    if scheduler is not None:
        with _one_sentence("model.lr_scheduler"):
            scheduler.step(0.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()


def _require_single_gradient(optimizer: Optimizer) -> None:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} evaluates the loss several times a step, which would sample rollouts again "
            "and leave out accumulated gradients; choose one that takes one gradient a step, such as torch.optim.AdamW"
        )


def _monitor(scheduler: ReduceLROnPlateau) -> str:
    monitor = getattr(scheduler, "monitor", None)
    if monitor is None:
        raise ValueError(
            "model.lr_scheduler: torch's ReduceLROnPlateau does not say which metric it follows; take the class_path "
            "lightning.pytorch.cli.ReduceLROnPlateau with init_args.monitor, such as reward or val/accuracy."
        )
    return str(monitor)


def _advice(parameters: Sequence[Parameter]) -> str:
    if all(parameter.ndim == 2 for parameter in parameters):
        return ""
    return "; torch.optim.AdamW takes weights of any shape, and with model.lora all trained weights are matrices"


@contextmanager
def _one_sentence(key: str, advice: str = "") -> Iterator[None]:
    """Turns any error of the user's class into a ValueError that names `key`."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{key}: {' '.join(str(error).split()).rstrip('.')}{advice}.") from error
