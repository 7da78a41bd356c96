"""`plan`: what a configuration needs of a device's memory, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.sft import WarmupDataModule
from relay_lightning.memory.advice import USABLE_SHARE, advise, fits
from relay_lightning.memory.plan import MemoryPlan, Workload, plan_memory
from relay_lightning.models.loading import load_config
from relay_lightning.models.skeleton import ModelPlan, check_precision
from relay_lightning.modules.base import RelayModule
from relay_lightning.modules.grpo import GRPOModule

GB = 1e9
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


def plan(module: RelayModule, data: Any, trainer: Mapping[str, Any], device_memory_gb: float | None) -> None:
    """Prints the plan of a run. Raises RuntimeError, saying what to change, if the device is too small."""
    is_gpu = plans_for_gpu(trainer, device_memory_gb)
    workload = read_workload(module, data, trainer, "cuda" if is_gpu else "cpu")
    memory_bytes = own_memory_bytes(is_gpu) if device_memory_gb is None else device_memory_gb * GB
    planned = plan_memory(workload)
    Console(highlight=False).print(plan_table(planned, workload))
    sentence = f"peak {planned.peak / GB:.2f} GB of {memory_bytes / GB:.2f} GB"
    if fits(planned, memory_bytes):
        print(f"fits: {sentence}")
        return
    advice = advise(workload, planned, memory_bytes, trainer["accumulate_grad_batches"])
    remedy = ", ".join(f"{key}: {value}" for key, value in advice.changes.items()) or "no change that is known"
    outcome = "it would fit" if fits(advice.plan, memory_bytes) else "even then it would not fit"
    raise RuntimeError(
        f"The run does not fit: {sentence}, of which {USABLE_SHARE:.0%} can be used. With {remedy} {outcome}: "
        f"{advice.plan.peak / GB:.2f} GB. Lower model.max_completion_tokens (now {workload.num_completion_tokens}) and "
        "data.max_prompt_tokens shrink all but the weights."
    )


def read_workload(module: RelayModule, data: Any, trainer: Mapping[str, Any], device_type: str) -> Workload:
    """What the configuration asks of one process. Raises ValueError for data without a batch size to plan for."""
    precision = str(trainer["precision"] or "32-true")
    check_precision(precision)
    num_rows, num_requests = batch_sizes(module, data, trainer)
    student = ModelPlan(
        module.student_name,
        load_config(module.student_name, module.student_loading),
        module.student_loading,
        is_trained=True,
        lora=module.lora,
        gradient_checkpointing=module.gradient_checkpointing,
        precision=precision,
    )
    teacher = None
    if module.teacher_name is not None:
        config = load_config(module.teacher_name, module.teacher_loading)
        teacher = ModelPlan(module.teacher_name, config, module.teacher_loading, is_trained=False, precision=precision)
    return Workload(
        student=student,
        teacher=teacher,
        make_optimizer=module.make_optimizer,
        num_slots=min(module.num_slots, num_requests),
        num_prompt_tokens=data.max_prompt_tokens,
        num_completion_tokens=module.max_completion_tokens,
        num_rows=num_rows,
        device_type=device_type,
        has_reference=isinstance(module, GRPOModule) and module.loss_options["beta"] != 0 and module.lora is None,
        draws_self_samples=isinstance(data, WarmupDataModule),
    )


def batch_sizes(module: RelayModule, data: Any, trainer: Mapping[str, Any]) -> tuple[int, int]:
    """Rows of a micro-batch, and completions decoded at a time, of one process."""
    num_processes = trainer["devices"] if isinstance(trainer["devices"], int) and trainer["devices"] > 0 else 1
    num_processes *= trainer["num_nodes"]
    num_micro_batches = trainer["accumulate_grad_batches"] * num_processes
    if isinstance(data, PromptDataModule) and isinstance(module, GRPOModule):
        num_completions = data.prompts_per_rollout * module.decoding.group_size
        return max(1, num_completions // (data.steps_per_rollout * num_micro_batches)), num_completions // num_processes
    if isinstance(data, WarmupDataModule):
        return max(1, data.batch_size // num_micro_batches), data.eval_batch_size
    raise ValueError(
        f"{type(module).__name__} with {type(data).__name__} cannot be planned for; `plan` knows GRPOModule with "
        "PromptDataModule and WarmupModule with WarmupDataModule."
    )


def plans_for_gpu(trainer: Mapping[str, Any], device_memory_gb: float | None) -> bool:
    """Whether the configuration is for a GPU: it says so, there is one, or the size of one was given."""
    accelerator = trainer["accelerator"]
    if accelerator == "auto":
        return torch.cuda.is_available() or device_memory_gb is not None
    return accelerator in ("gpu", "cuda")


def own_memory_bytes(is_gpu: bool) -> float:
    """Of this machine's GPU, or of its RAM. Raises ValueError if it is to be a GPU's and there is none."""
    if not is_gpu:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if not torch.cuda.is_available():
        raise ValueError("This machine has no GPU to plan for; say how large it is with --device_memory_gb.")
    return float(torch.cuda.get_device_properties(0).total_memory)


def plan_table(planned: MemoryPlan, workload: Workload) -> Table:
    """Parts, then phases, in GB."""
    table = Table("what", "GB", title=f"{workload.student.name} with {getattr(workload.teacher, 'name', 'no teacher')}")
    table.columns[1].justify = "right"
    for field, label in PARTS.items():
        table.add_row(label, f"{getattr(planned, field) / GB:.2f}", end_section=field == "optimizer_workspace")
    for phase, num_bytes in planned.phases.items():
        table.add_row(f"peak in {phase}", f"{num_bytes / GB:.2f}")
    return table
