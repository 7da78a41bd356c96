"""Decode steps of one engine by themselves, the way the relay runs them."""

from __future__ import annotations

from collections.abc import Callable

from relay_lightning.engine.base import TokenEngine
from relay_lightning.engine.cuda_graphs import CudaCapture, StepGraphs


def run_steps(engine: TokenEngine, step: Callable[[], object], num_steps: int) -> None:
    """Runs a step of `engine` over all its slots so many times: on a GPU captured once and then repeated.

    step: reads and writes tensors in place.
    """
    if engine.device.type != "cuda":
        for _ in range(num_steps):
            step()
        return
    graphs = StepGraphs(CudaCapture(engine.device), engine.lengths.shape[0], engine.device)
    for _ in range(num_steps):
        if graphs.run(engine.step_shape, step):
            engine.count_step()
