"""What two runs are compared by: weights, optimiser, rollouts, figures and scalars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

MEASURED = ("time/", "throughput/", "memory/")
"""Scalars that depend on the clock; only their steps can agree."""


def checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def optimizer_tensors(saved: dict[str, Any]) -> list[torch.Tensor]:
    (state,) = saved["optimizer_states"]
    return [tensor for moments in state["state"].values() for tensor in moments.values()]


def summary(folder: Path) -> dict[str, Any]:
    """The figures of the report, without the seconds that it took."""
    return {**json.loads((folder / "summary.json").read_text()), "wall_s": None}


def scalars(folder: Path) -> dict[str, list[tuple[int, float | None]]]:
    """Step and value of every scalar, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {
        tag: [(event.step, None if tag.startswith(MEASURED) else event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def assert_same_run(first: Path, second: Path) -> None:
    """Bit equality of everything that two runs made, but for what the clock measured."""
    one, other = checkpoint(first), checkpoint(second)
    assert one["global_step"] == other["global_step"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    for left, right in zip(optimizer_tensors(one), optimizer_tensors(other), strict=True):
        assert torch.equal(left, right)
    assert (first / "rollouts.jsonl").read_bytes() == (second / "rollouts.jsonl").read_bytes()
    assert summary(first) == summary(second)
    assert scalars(first) == scalars(second)
