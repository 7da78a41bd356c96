"""`plan`: estimates the memory that a configuration needs before anything is loaded; and the check that `fit` makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relay_lightning.commands.workload import own_memory_bytes, plans_for_gpu, read_workload
from relay_lightning.engine.kv_budget import CPU_SHARE, GB
from relay_lightning.memory.advice import advise, fits
from relay_lightning.memory.plan import USABLE_SHARE, MemoryPlan, kv_demand, plan_memory
from relay_lightning.memory.workload import Workload
from relay_lightning.modules.base import RelayModule
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
MEAN_DIVISOR, MOST_MEAN_TOKENS = 4, 1000
"""A mean row is taken to have a quarter of the longest prompt and of the longest completion, at most 1,000 tokens."""
OnMisfit = Literal["stop", "warn", "off"]
"""What `fit` does with a run that does not fit; `off` does not plan."""


def plan(
    module: RelayModule,
    data: Any,
    trainer: Mapping[str, Any],
    device_memory_gb: float | None,
    mean_completion_tokens: int | None = None,
) -> None:
    """Prints the plan of a run. Raises RuntimeError, saying what to change, if the device is too small."""
    is_gpu = plans_for_gpu(trainer, device_memory_gb)
    memory_bytes = own_memory_bytes(is_gpu) if device_memory_gb is None else device_memory_gb * GB
    workload = read_workload(module, data, trainer, "cuda" if is_gpu else "cpu", memory_bytes)
    mean_tokens = mean_lengths(workload, mean_completion_tokens)
    planned = plan_memory(workload)
    Console(highlight=False).print(plan_table(planned, workload))
    print(kv_sentence(planned, workload))
    print(rows_sentence(planned, workload, *mean_tokens))
    if misfit := describe_misfit(planned, workload, trainer["accumulate_grad_batches"]):
        raise RuntimeError(misfit)
    print(f"fits: {peak_sentence(planned, memory_bytes)}")


def plan_run(module: RelayModule, data: Any, trainer: Trainer, on_misfit: OnMisfit | None) -> None:
    """Plans a run before `fit` loads weights. On a GPU `kv_cache_gb: auto` becomes the planned number.

    on_misfit: None stops on a GPU and does not plan on a CPU, nor for a run that cannot be planned for. Raises
    RuntimeError for a run that does not fit and is to stop.
    """
    is_gpu = trainer.strategy.root_device.type == "cuda"
    if on_misfit == "off" or (on_misfit is None and not is_gpu):
        return
    memory_bytes, settings = own_memory_bytes(is_gpu), run_settings(trainer)
    try:
        workload = read_workload(module, data, settings, trainer.strategy.root_device.type, memory_bytes)
        planned = plan_memory(workload)
    except (ValueError, RuntimeError) as error:  # what cannot be planned may still run
        if on_misfit is not None:
            raise
        rank_zero_warn(one_line(f"The memory of this run is not planned: {error}"))
        return
    misfit = describe_misfit(planned, workload, settings["accumulate_grad_batches"])
    if misfit and on_misfit != "warn":
        raise RuntimeError(f"{misfit} To try it all the same: --plan warn.")
    rank_zero_info(kv_sentence(planned, workload))
    if is_gpu and module.kv_cache_gb == "auto":
        module.kv_cache_gb = planned.kv.kv_cache_gb
    if misfit:
        rank_zero_warn(misfit)
    else:
        rank_zero_info(f"planned: {peak_sentence(planned, memory_bytes)}")


def run_settings(trainer: Trainer) -> dict[str, Any]:
    """Returns what a plan needs to know of a trainer, under the names of its configuration."""
    return {
        "precision": trainer.precision,
        "strategy": trainer.strategy,
        "devices": trainer.num_devices,
        "num_nodes": trainer.num_nodes,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }


def describe_misfit(planned: MemoryPlan, workload: Workload, num_micro_batches: int) -> str | None:
    """Returns a sentence that says what to change about a run that does not fit; None for one that does."""
    memory_bytes = workload.memory_bytes
    if fits(planned, memory_bytes):
        return None
    advice = advise(workload, planned, num_micro_batches)
    remedy = ", ".join(f"{key}: {value}" for key, value in advice.changes.items()) or "no change that is known"
    outcome = "it would fit" if fits(advice.plan, memory_bytes) else "even then it would not fit"
    return (
        f"The run does not fit: {peak_sentence(planned, memory_bytes)}, of which {USABLE_SHARE:.0%} can be used. "
        f"With {remedy} {outcome}: {advice.plan.peak / GB:.2f} GB. Lower model.max_completion_tokens (now "
        f"{workload.num_completion_tokens}) and data.max_prompt_tokens shrink all but the weights; keys and values "
        f"take at least {kv_demand(workload).gb_for(1):g} GB, one row of {workload.longest_row} tokens."
    )


def peak_sentence(planned: MemoryPlan, memory_bytes: float) -> str:
    """Returns the peak of a plan beside the memory there is."""
    return f"peak {planned.peak / GB:.2f} GB of {memory_bytes / GB:.2f} GB"


def kv_sentence(planned: MemoryPlan, workload: Workload) -> str:
    """Returns the KV memory of a plan and the number of its blocks."""
    kv, setting = planned.kv, str(workload.kv_cache_gb)
    if workload.kv_cache_gb == "auto" and workload.device_type == "cpu":
        setting += f", at most {CPU_SHARE:.0%} of all memory"
    return (
        f"keys and values: {kv.num_bytes / GB:.2f} GB (kv_cache_gb: {setting}), {kv.num_blocks} blocks of "
        f"{kv.block_size} tokens for each model"
    )


def rows_sentence(planned: MemoryPlan, workload: Workload, num_prompt_tokens: int, num_completion_tokens: int) -> str:
    """Returns how many rows of the longest and of a mean length the blocks hold."""
    longest, mean = workload.longest_row, num_prompt_tokens + num_completion_tokens
    return (
        f"they hold {planned.kv.num_rows(longest)} rows of the longest length ({longest} tokens), or "
        f"{planned.kv.num_rows(mean)} of a mean length ({num_prompt_tokens} + {num_completion_tokens} tokens: a quarter"
        f" of data.max_prompt_tokens, and --mean_completion_tokens); max_num_seqs: {workload.max_num_seqs}"
    )


def mean_lengths(workload: Workload, mean_completion_tokens: int | None) -> tuple[int, int]:
    """Returns the tokens of a mean prompt and of a mean completion.

    Raises ValueError for a mean completion that is longer than the longest or empty.
    """
    longest = workload.num_completion_tokens
    if mean_completion_tokens is None:
        mean_completion_tokens = min(MOST_MEAN_TOKENS, max(1, longest // MEAN_DIVISOR))
    if not 1 <= mean_completion_tokens <= longest:
        raise ValueError(
            f"mean_completion_tokens must be from 1 to model.max_completion_tokens, {longest}, not "
            f"{mean_completion_tokens}."
        )
    return max(1, workload.num_prompt_tokens // MEAN_DIVISOR), mean_completion_tokens


def plan_table(planned: MemoryPlan, workload: Workload) -> Table:
    """Returns the parts of a plan, then the peak of each phase, in GB."""
    title = f"{workload.student.name} with {getattr(workload.teacher, 'name', 'no teacher')}"
    table = Table("what", "GB", title=Text(one_line(title)))
    table.columns[1].justify = "right"
    for field, label in PARTS.items():
        table.add_row(label, f"{getattr(planned, field) / GB:.2f}", end_section=field == "optimizer_workspace")
    for phase, num_bytes in planned.phases.items():
        table.add_row(f"peak in {phase}", f"{num_bytes / GB:.2f}")
    return table
