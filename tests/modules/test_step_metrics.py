"""Figures of an optimiser step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from relay_lightning.modules.step_metrics import StepMetrics

MICRO_BATCHES = [
    ({"entropy": 1.0, "ratio/max": 2.0, "ratio/min": 2.0}, {"entropy": 10, "ratio/max": 4, "ratio/min": 4}),
    ({"entropy": 4.0, "ratio/max": 3.0, "ratio/min": 1.0}, {"entropy": 5, "ratio/max": 1, "ratio/min": 1}),
    ({"entropy": 0.0, "ratio/max": 0.0, "ratio/min": 0.0}, {"entropy": 0, "ratio/max": 0, "ratio/min": 0}),
]
EXPECTED = {"entropy": 2.0, "ratio/max": 3.0, "ratio/min": 1.0}


def tensors(values: dict[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(float(value)) for name, value in values.items()}


def as_floats(figures: dict[str, Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in figures.items()}


def test_means_are_weighted_and_an_empty_micro_batch_says_nothing() -> None:
    step = StepMetrics()
    for _ in range(2):  # the second step knows nothing of the first
        for values, weights in MICRO_BATCHES:
            step.add(tensors(values), tensors(weights))
        assert as_floats(step.reduce(lambda table: table[None])) == pytest.approx(EXPECTED)


def test_figures_do_not_depend_on_how_processes_share_the_micro_batches() -> None:
    tables: list[Tensor] = []
    for values, weights in MICRO_BATCHES:
        share = StepMetrics()
        share.add(tensors(values), tensors(weights))
        share.reduce(lambda table: tables.append(table) or table[None])
    first = StepMetrics()
    first.add(*map(tensors, MICRO_BATCHES[0]))
    assert as_floats(first.reduce(lambda _: torch.stack(tables))) == pytest.approx(EXPECTED)


def test_a_figure_is_zero_when_no_micro_batch_has_any_token() -> None:
    step = StepMetrics()
    step.add(*map(tensors, MICRO_BATCHES[2]))
    assert set(as_floats(step.reduce(lambda table: table[None])).values()) == {0.0}
