"""`plan`: what a configuration needs of a device's memory, before anything is loaded; and `fit`'s look at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relay_lightning.commands.workload import GB, own_memory_bytes, plans_for_gpu, read_workload
from relay_lightning.memory.advice import USABLE_SHARE, advise, fits
from relay_lightning.memory.plan import MemoryPlan, Workload, plan_memory
from relay_lightning.modules.base import AUTO_SLOTS, RelayModule
from relay_lightning.terminal import one_line

PARTS = {
    "student_weights": "student, with its adapters",
    "teacher_weights": "teacher",
    "reference_weights": "reference policy",
    "gradients": "gradients",
    "optimizer_state": "optimiser state",
    "student_cache": "keys and values of the student",
    "teacher_cache": "keys and values of the teacher",
    "decode_workspace": "decoding, beside them",
    "activations": "activations of a micro-batch",
    "head_workspace": "log-probabilities, beside them",
    "optimizer_workspace": "optimiser step, beside its state",
}
OnMisfit = Literal["stop", "warn", "off"]
"""What `fit` does when the plan says that the run does not fit; `off` does not plan."""


def plan(module: RelayModule, data: Any, trainer: Mapping[str, Any], device_memory_gb: float | None) -> None:
    """Prints the plan of a run. Raises RuntimeError, saying what to change, if the device is too small."""
    is_gpu = plans_for_gpu(trainer, device_memory_gb)
    memory_bytes = own_memory_bytes(is_gpu) if device_memory_gb is None else device_memory_gb * GB
    workload = read_workload(module, data, trainer, "cuda" if is_gpu else "cpu", memory_bytes)
    planned = plan_memory(workload)
    Console(highlight=False).print(plan_table(planned, workload))
    if module.num_slots == AUTO_SLOTS:
        print(f"num_slots: {AUTO_SLOTS} is {workload.num_slots}")
    if misfit := describe_misfit(planned, workload, memory_bytes, trainer["accumulate_grad_batches"]):
        raise RuntimeError(misfit)
    print(f"fits: {peak_sentence(planned, memory_bytes)}")


def plan_run(module: RelayModule, data: Any, trainer: Trainer, on_misfit: OnMisfit | None) -> None:
    """What `fit` and its kin do before weights are loaded: `num_slots: auto` gets its number, and a misfit is said.

    on_misfit: None stops on a GPU and does not plan on a CPU, nor for a run that cannot be planned for. Raises
    RuntimeError for a run that does not fit and is to stop.
    """
    is_gpu = trainer.strategy.root_device.type == "cuda"
    is_planned = on_misfit in ("stop", "warn") or (on_misfit is None and is_gpu)
    if not is_planned and module.num_slots != AUTO_SLOTS:
        return
    memory_bytes, settings = own_memory_bytes(is_gpu), run_settings(trainer)
    try:
        workload = read_workload(module, data, settings, trainer.strategy.root_device.type, memory_bytes)
        planned = plan_memory(workload)
    except (ValueError, RuntimeError) as error:  # what cannot be planned may still run
        if on_misfit is not None or module.num_slots == AUTO_SLOTS:
            raise
        rank_zero_warn(one_line(f"The memory of this run is not planned: {error}"))
        return
    if module.num_slots == AUTO_SLOTS:
        module.num_slots = workload.num_slots
        rank_zero_info(f"num_slots: {AUTO_SLOTS} is {workload.num_slots}")
    if not is_planned:
        return
    misfit = describe_misfit(planned, workload, memory_bytes, settings["accumulate_grad_batches"])
    if misfit and on_misfit != "warn":
        raise RuntimeError(f"{misfit} To try it all the same: --plan warn.")
    if misfit:
        rank_zero_warn(misfit)
    else:
        rank_zero_info(f"planned: {peak_sentence(planned, memory_bytes)}")


def run_settings(trainer: Trainer) -> dict[str, Any]:
    """What a plan needs to know of a trainer, under the names of its configuration."""
    return {
        "precision": trainer.precision,
        "strategy": trainer.strategy,
        "devices": trainer.num_devices,
        "num_nodes": trainer.num_nodes,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def describe_misfit(planned: MemoryPlan, workload: Workload, memory_bytes: float, num_micro_batches: int) -> str | None:
    """What to change about a run that does not fit; None for one that does."""
    if fits(planned, memory_bytes):
        return None
    advice = advise(workload, planned, memory_bytes, num_micro_batches)
    remedy = ", ".join(f"{key}: {value}" for key, value in advice.changes.items()) or "no change that is known"
    outcome = "it would fit" if fits(advice.plan, memory_bytes) else "even then it would not fit"
    return (
        f"The run does not fit: {peak_sentence(planned, memory_bytes)}, of which {USABLE_SHARE:.0%} can be used. "
        f"With {remedy} {outcome}: {advice.plan.peak / GB:.2f} GB. Lower model.max_completion_tokens (now "
        f"{workload.num_completion_tokens}) and data.max_prompt_tokens shrink all but the weights."
    )


def peak_sentence(planned: MemoryPlan, memory_bytes: float) -> str:
    """The figure that a plan comes to."""
    return f"peak {planned.peak / GB:.2f} GB of {memory_bytes / GB:.2f} GB"


def plan_table(planned: MemoryPlan, workload: Workload) -> Table:
    """Parts, then phases, in GB."""
    title = f"{workload.student.name} with {getattr(workload.teacher, 'name', 'no teacher')}"
    table = Table("what", "GB", title=Text(one_line(title)))
    table.columns[1].justify = "right"
    for field, label in PARTS.items():
        table.add_row(label, f"{getattr(planned, field) / GB:.2f}", end_section=field == "optimizer_workspace")
    for phase, num_bytes in planned.phases.items():
        table.add_row(f"peak in {phase}", f"{num_bytes / GB:.2f}")
    return table
