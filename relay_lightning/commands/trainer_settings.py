"""Checks of the trainer's settings that Lightning does not make, or makes too late or without saying what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry

HAS_NO_KERNELS = ("64", "64-true")
"""Precisions under which a student cannot decode: sampling takes logits of at most 32 bits."""


def require_usable(settings: Mapping[str, Any]) -> None:
    """Raises ValueError naming the key of `trainer` that cannot be used, and what to set instead."""
    precision, interval = settings["precision"], settings["val_check_interval"]
    if str(precision) in HAS_NO_KERNELS:
        raise ValueError(
            f"trainer.precision is {precision}, at which a student cannot decode; "
            "set it to 32-true, bf16-mixed, 16-mixed, bf16-true or 16-true."
        )
    if isinstance(interval, int | float) and interval <= 0:
        raise ValueError(
            f"trainer.val_check_interval must be above 0, but is {interval}; "
            "to train without validation set trainer.limit_val_batches to 0."
        )
    if settings["accumulate_grad_batches"] < 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches must be at least 1, but is {settings['accumulate_grad_batches']}."
        )
    accelerator = settings["accelerator"]
    if isinstance(accelerator, str) and not is_present(accelerator):
        raise ValueError(
            f"trainer.accelerator is {accelerator}, but this machine has none that PyTorch can use; "
            "set it to auto or cpu."
        )


def is_present(accelerator: str) -> bool:
    """False for an accelerator that Lightning knows and that this machine lacks."""
    names = ("cuda", "mps") if accelerator == "gpu" else (accelerator,)
    known = [AcceleratorRegistry[name]["accelerator"] for name in names if name in AcceleratorRegistry]
    return not known or any(kind.is_available() for kind in known)
