"""How many completions a device has room for."""

from __future__ import annotations

from dataclasses import replace

from relay_lightning.memory.advice import fits
from relay_lightning.memory.plan import Workload, plan_memory


def with_most_slots(workload: Workload, memory_bytes: float) -> Workload:
    """The workload with as many slots as fit, at most those that it has; with one if none does."""
    fitting, too_many = 1, workload.num_slots + 1
    while too_many - fitting > 1:
        num_slots = (fitting + too_many) // 2
        if fits(plan_memory(replace(workload, num_slots=num_slots)), memory_bytes):
            fitting = num_slots
        else:
            too_many = num_slots
    return replace(workload, num_slots=fitting)
