"""What to change in a configuration that needs more memory than there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from relay_lightning.memory.plan import MemoryPlan, Workload, plan_memory
from relay_lightning.models.lora import LoRASettings
from relay_lightning.models.skeleton import ModelPlan

USABLE_SHARE = 0.95
"""Of a device's memory: the rest is left to the driver and to what fragmentation wastes."""
FEW_SLOTS = 4
"""Fewer completions in flight waste the device; weights in 4 bits are advised first."""


@dataclass(frozen=True)
class Advice:
    """A smaller run, what it needs, and how to get it."""

    workload: Workload
    plan: MemoryPlan
    changes: dict[str, str]
    """New values by key of the configuration."""


def fits(plan: MemoryPlan, memory_bytes: float) -> bool:
    """Whether the peak leaves a margin."""
    return plan.peak <= USABLE_SHARE * memory_bytes


def advise(workload: Workload, plan: MemoryPlan, memory_bytes: float, num_micro_batches: int) -> Advice:
    """The changes that make the run fit, cheap ones first; all that there are if even they do not suffice.

    num_micro_batches: into which an optimiser step is divided now.
    """
    num_step_rows = num_micro_batches * workload.num_rows
    for start, fewest_slots in _quantised(Advice(workload, plan, {})):
        smallest = _smallest(start, fewest_slots, num_step_rows)
        if not fits(smallest.plan, memory_bytes):
            continue
        advice = start
        while not fits(advice.plan, memory_bytes):
            changed = (_changed(advice, *change) for change in _changes(advice, fewest_slots, num_step_rows))
            advice = next((smaller for smaller in changed if smaller.plan.peak < advice.plan.peak), smallest)
        return advice
    return smallest


def _smallest(advice: Advice, fewest_slots: int, num_step_rows: int) -> Advice:
    """After every change but more quantisation."""
    workload, changes = advice.workload, dict(advice.changes)
    while step := _changes(replace(advice, workload=workload), fewest_slots, num_step_rows):
        workload = step[0][0]
        changes |= step[0][1]
    return Advice(workload, plan_memory(workload), changes)


def _quantised(advice: Advice) -> Iterator[tuple[Advice, int]]:
    """Where to start: as it is, with the teacher in 4 bits, with both; each with the fewest slots to go down to."""
    yield advice, FEW_SLOTS
    teacher, student = advice.workload.teacher, advice.workload.student
    if teacher is not None and teacher.loading.quantization is None:
        workload = replace(advice.workload, teacher=_in_four_bits(teacher))
        advice = _changed(advice, workload, {"model.teacher_loading.quantization": "nf4"})
        yield advice, FEW_SLOTS
    if student.loading.quantization is None:
        lora = student.lora or LoRASettings()
        smaller = replace(_in_four_bits(student, dtype="bf16"), lora=lora)
        workload = replace(advice.workload, student=smaller, has_reference=False)
        changes = {
            "model.student_loading.quantization": "nf4",
            "model.student_loading.dtype": "bf16",
            "model.lora.rank": str(lora.rank),
        }
        advice = _changed(advice, workload, changes)
    yield advice, 1


def _changes(advice: Advice, fewest_slots: int, num_step_rows: int) -> list[tuple[Workload, dict[str, str]]]:
    """The next steps to a smaller run, the cheapest first."""
    workload = advice.workload
    changes = []
    if not workload.student.gradient_checkpointing:
        student = replace(workload.student, gradient_checkpointing=True)
        changes.append((replace(workload, student=student), {"model.gradient_checkpointing": "true"}))
    if workload.num_rows % 2 == 0:
        num_rows = workload.num_rows // 2
        change = {"trainer.accumulate_grad_batches": str(num_step_rows // num_rows)}
        changes.append((replace(workload, num_rows=num_rows), change))
    if workload.num_slots // 2 >= fewest_slots:
        num_slots = workload.num_slots // 2
        changes.append((replace(workload, num_slots=num_slots), {"model.num_slots": str(num_slots)}))
    return changes


def _changed(advice: Advice, workload: Workload, changes: dict[str, str]) -> Advice:
    return Advice(workload, plan_memory(workload), advice.changes | changes)


def _in_four_bits(model: ModelPlan, **options: Any) -> ModelPlan:
    return replace(model, loading=replace(model.loading, quantization="nf4", **options))
