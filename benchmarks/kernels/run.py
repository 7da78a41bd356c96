"""Runs a case: the gate first, then everybody's time and memory in the same minutes on the same inputs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.kernels.case import Case, Work
from benchmarks.kernels.clock import cold_bytes, count_launches, peak_extra_bytes, time_call
from benchmarks.kernels.outcome import OURS, Measured, Outcome
from benchmarks.kernels.target import Target

MAX_SETS = 32
"""Sets of inputs that take turns, at most."""
MAX_REASON = 160
"""Characters of the reason why a rival failed."""
COPY_BYTES = 1 << 30
SMALL_COPY_BYTES = 64 << 20


def copy_bandwidth(target: Target) -> float:
    """Bytes read plus bytes written per second of a plain copy, much larger than any cache."""
    source = torch.ones(COPY_BYTES if target.is_full else SMALL_COPY_BYTES, dtype=torch.uint8, device=target.device)
    sink = torch.empty_like(source)
    timing = time_call(lambda: sink.copy_(source), 1, target.device)
    return 2 * source.numel() / timing.p50_s


def run_case(case: Case, target: Target, copy_bytes_per_s: float) -> Outcome:
    """What came of a case. A red check ends it before anything is timed; a rival that fails is noted, no more."""
    checks = case.check(case.make_inputs())
    outcome = Outcome(
        case,
        backend=target.backend,
        dtype=str(target.dtype).removeprefix("torch."),
        is_full=target.is_full,
        copy_bytes_per_s=copy_bytes_per_s,
        checks=checks,
    )
    if not outcome.is_green:
        return outcome
    sets = _make_sets(case, target)
    outcome.is_cold = len(sets) * case.num_bytes >= cold_bytes(target.device)
    outcome.num_launches = count_launches(partial(case.ours, sets[0]), target.device)
    for name, work in {OURS: case.ours, **case.yardsticks}.items():
        outcome.contestants[name] = _measure(work, case, sets, target)
    for name, work in case.rivals.items():
        try:
            outcome.contestants[name] = _measure(work, case, sets, target)
        except Exception as error:  # Whatever is wrong with a rival, it must not cost us the others' figures.
            outcome.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:MAX_REASON]
    if not all(map(case.is_intact, sets)):
        raise RuntimeError(f"{case.op}, {case.setting}: the last calls had less to do than the first; no time counts")
    return outcome


def _make_sets(case: Case, target: Target) -> list[Any]:
    """As many sets of inputs as the cache cannot hold, or as many as are sensible; one on a CPU."""
    wanted = -(-cold_bytes(target.device) // case.num_bytes) if target.is_full else 1
    return [case.make_inputs() for _ in range(min(wanted, MAX_SETS))]


def _measure(work: Work, case: Case, sets: Sequence[Any], target: Target) -> Measured:
    """Time and memory of one contestant; leaves nothing of it in memory."""
    try:
        timing = time_call(_in_turn(work, sets), len(sets), target.device, is_graphed=case.is_graphed)
        return Measured(timing, peak_extra_bytes(partial(work, sets[0]), target.device))
    finally:
        gc.collect()
        if target.device.type == "cuda":
            torch.cuda.empty_cache()


def _in_turn(work: Work, sets: Sequence[Any]) -> Callable[[], None]:
    def run() -> None:
        for inputs in sets:
            work(inputs)

    return run
