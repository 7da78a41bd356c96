"""What a configuration asks of a device, for the memory plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.sft import WarmupDataModule
from relay_lightning.memory.plan import Workload
from relay_lightning.memory.slots import with_most_slots
from relay_lightning.models.loading import load_config, load_tokenizer
from relay_lightning.models.published import published_config_folder
from relay_lightning.models.skeleton import ModelPlan, check_precision
from relay_lightning.modules.base import AUTO_SLOTS, RelayModule
from relay_lightning.modules.grpo import GRPOModule
from relay_lightning.modules.sharded_strategy import is_sharded
from relay_lightning.pair import needs_bridge

GB = 1e9
MOST_SELF_SAMPLES = 1024
"""Self-samples that are decoded together at most, where the number of slots is chosen."""


def read_workload(
    module: RelayModule, data: Any, trainer: Mapping[str, Any], device_type: str, memory_bytes: float
) -> Workload:
    """What the configuration asks of one process; `num_slots: auto` becomes what fits `memory_bytes`.

    Raises ValueError for data without a batch size to plan for.
    """
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
    workload = Workload(
        student=student,
        teacher=teacher,
        make_optimizer=module.make_optimizer,
        num_slots=num_requests if module.num_slots == AUTO_SLOTS else module.num_slots,
        num_prompt_tokens=data.max_prompt_tokens,
        num_completion_tokens=module.max_completion_tokens,
        num_rows=num_rows,
        has_bridge=teacher is not None and has_bridge(student, teacher),
        device_type=device_type,
        has_reference=isinstance(module, GRPOModule) and module.loss_options["beta"] != 0 and module.lora is None,
        num_shards=num_processes(trainer) if is_sharded(trainer["strategy"]) else 1,
        draws_self_samples=isinstance(data, WarmupDataModule),
    )
    return with_most_slots(workload, memory_bytes) if module.num_slots == AUTO_SLOTS else workload


def batch_sizes(module: RelayModule, data: Any, trainer: Mapping[str, Any]) -> tuple[int, int]:
    """Rows of a micro-batch, and completions there are to decode at a time, of one process."""
    num_micro_batches = trainer["accumulate_grad_batches"] * num_processes(trainer)
    if isinstance(data, PromptDataModule) and isinstance(module, GRPOModule):
        num_completions = data.prompts_per_rollout * module.decoding.group_size
        num_requests = max(num_completions // num_processes(trainer), data.eval_batch_size)
        return max(1, num_completions // (data.steps_per_rollout * num_micro_batches)), num_requests
    if isinstance(data, WarmupDataModule):
        return max(1, data.batch_size // num_micro_batches), max(data.eval_batch_size, MOST_SELF_SAMPLES)
    raise ValueError(
        f"{type(module).__name__} with {type(data).__name__} cannot be planned for; `plan` knows GRPOModule with "
        "PromptDataModule and WarmupModule with WarmupDataModule."
    )


def num_processes(trainer: Mapping[str, Any]) -> int:
    """That the run has; one where the configuration leaves it to the machine."""
    devices = str(trainer["devices"])  # a number on the command line is read as text
    return (int(devices) if devices.isdecimal() else 1) * int(trainer["num_nodes"])


def has_bridge(student: ModelPlan, teacher: ModelPlan) -> bool:
    """Whether hand-overs go through text. Where the tokenizers are not at hand, the widths of the logits tell."""
    if all(published_config_folder(model.name) for model in (student, teacher)):
        return False  # one family
    try:
        return needs_bridge(*(load_tokenizer(model.name, model.loading) for model in (student, teacher)))
    except (RuntimeError, FileNotFoundError):
        return bool(student.config.vocab_size != teacher.config.vocab_size)


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
