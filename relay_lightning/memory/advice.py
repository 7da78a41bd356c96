"""What to change in a configuration that needs more memory than there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from relay_lightning.memory.kv_plan import round_up
from relay_lightning.memory.plan import USABLE_SHARE, MemoryPlan, kv_demand, plan_memory
from relay_lightning.memory.workload import Workload
from relay_lightning.models.lora import LoRASettings
from relay_lightning.models.skeleton import ModelPlan

FEW_ROWS = 4
"""With memory for the keys and values of fewer rows of the longest length, or fewer sequences in flight, decoding is
slow; weights in 4 bits are advised first."""


@dataclass(frozen=True)
class Advice:
    """A smaller run, its plan, and the settings that lead to it."""

    workload: Workload
    plan: MemoryPlan
    changes: dict[str, str]
    """New values by key of the configuration."""


def fits(plan: MemoryPlan, memory_bytes: float) -> bool:
    """Returns True if the peak leaves a margin."""
    return plan.peak <= USABLE_SHARE * memory_bytes


def advise(workload: Workload, plan: MemoryPlan, num_micro_batches: int) -> Advice:
    """Returns the changes that make the run fit, cheap ones first, or all of them if even they do not suffice.

    num_micro_batches: micro-batches of an optimiser step now.
    """
    num_step_rows = num_micro_batches * workload.num_rows
    for start, fewest_rows in _quantised(Advice(workload, plan, {})):
        smallest = _smallest(start, fewest_rows, num_step_rows)
        if not fits(smallest.plan, workload.memory_bytes):
            continue
        advice = start
        while not fits(advice.plan, workload.memory_bytes):
            changed = (_changed(advice, *change) for change in _changes(advice, fewest_rows, num_step_rows))
            advice = next((smaller for smaller in changed if smaller.plan.peak < advice.plan.peak), smallest)
        return advice
    return smallest


def _smallest(advice: Advice, fewest_rows: int, num_step_rows: int) -> Advice:
    """Returns the run after every change but more quantisation."""
    workload, changes = advice.workload, dict(advice.changes)
    while step := _changes(replace(advice, workload=workload), fewest_rows, num_step_rows):
        workload = step[0][0]
        changes |= step[0][1]
    return Advice(workload, plan_memory(workload), changes)


def _quantised(advice: Advice) -> Iterator[tuple[Advice, int]]:
    """Yields where to start: as it is, with the teacher in 4 bits, with both.

    Each with the fewest rows, in flight and in KV memory, to go down to.
    """
    yield advice, FEW_ROWS
    teacher, student = advice.workload.teacher, advice.workload.student
    if teacher is not None and teacher.loading.quantization is None:
        workload = replace(advice.workload, teacher=_in_four_bits(teacher))
        advice = _changed(advice, workload, {"model.teacher_loading.quantization": "nf4"})
        yield advice, FEW_ROWS
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


def _changes(advice: Advice, fewest_rows: int, num_step_rows: int) -> list[tuple[Workload, dict[str, str]]]:
    """Returns the next steps to a smaller run, the cheapest first."""
    workload = advice.workload
    changes = []
    if not workload.student.gradient_checkpointing:
        student = replace(workload.student, gradient_checkpointing=True)
        changes.append((replace(workload, student=student), {"model.gradient_checkpointing": "true"}))
    if workload.num_rows % 2 == 0:
        num_rows = workload.num_rows // 2
        change = {"trainer.accumulate_grad_batches": str(num_step_rows // num_rows)}
        changes.append((replace(workload, num_rows=num_rows), change))
    if smaller := _fewer_kv_gb(workload, fewest_rows):
        changes.append((smaller, {"model.kv_cache_gb": str(smaller.kv_cache_gb)}))
    if workload.max_num_seqs // 2 >= fewest_rows:
        max_num_seqs = workload.max_num_seqs // 2
        changes.append((replace(workload, max_num_seqs=max_num_seqs), {"model.max_num_seqs": str(max_num_seqs)}))
    return changes


def _fewer_kv_gb(workload: Workload, fewest_rows: int) -> Workload | None:
    """Returns the workload with half the memory for keys and values, at least for so many rows of the longest length.

    None if it has no more than that, or what is left by all else anyway.
    """
    demand = kv_demand(workload)
    if demand.takes_what_is_left:
        return None
    least, now = demand.gb_for(fewest_rows), demand.plan(0).kv_cache_gb
    if workload.kv_cache_gb != "auto":
        now = min(now, float(workload.kv_cache_gb))
    return replace(workload, kv_cache_gb=max(round_up(now / 2), least)) if now > least else None


def _changed(advice: Advice, workload: Workload, changes: dict[str, str]) -> Advice:
    return Advice(workload, plan_memory(workload), advice.changes | changes)


def _in_four_bits(model: ModelPlan, **options: Any) -> ModelPlan:
    return replace(model, loading=replace(model.loading, quantization="nf4", **options))
