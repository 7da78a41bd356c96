"""What a configuration asks of a device, for the memory plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.sft import WarmupDataModule
from relay_lightning.memory.workload import Workload
from relay_lightning.models.loading import load_config, load_tokenizer
from relay_lightning.models.published import published_config_folder
from relay_lightning.models.skeleton import ModelPlan, check_precision
from relay_lightning.modules.base import RelayModule
from relay_lightning.modules.grpo import GRPOModule
from relay_lightning.modules.sharded_strategy import is_sharded
from relay_lightning.pair import needs_bridge


def read_workload(
    module: RelayModule, data: Any, trainer: Mapping[str, Any], device_type: str, memory_bytes: float
) -> Workload:
    """Returns what the configuration asks of one process.

    memory_bytes: size of the device's memory. Raises ValueError for data without a batch size to plan for.
    """
    precision = str(trainer["precision"] or "32-true")
    check_precision(precision)
    num_rows = micro_batch_size(module, data, trainer)
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
        max_num_seqs=module.max_num_seqs,
        num_prompt_tokens=data.max_prompt_tokens,
        num_completion_tokens=module.max_completion_tokens,
        num_rows=num_rows,
        memory_bytes=memory_bytes,
        kv_cache_gb=module.kv_cache_gb,
        block_size=module.block_size,
        has_bridge=teacher is not None and has_bridge(student, teacher),
        device_type=device_type,
        has_reference=isinstance(module, GRPOModule) and module.loss_options["beta"] != 0 and module.lora is None,
        num_shards=num_processes(trainer) if is_sharded(trainer["strategy"]) else 1,
        draws_self_samples=isinstance(data, WarmupDataModule),
    )


def micro_batch_size(module: RelayModule, data: Any, trainer: Mapping[str, Any]) -> int:
    """Returns the rows of a micro-batch of one process."""
    num_micro_batches = trainer["accumulate_grad_batches"] * num_processes(trainer)
    if isinstance(data, PromptDataModule) and isinstance(module, GRPOModule):
        num_completions = data.prompts_per_rollout * module.decoding.group_size
        return max(1, num_completions // (data.steps_per_rollout * num_micro_batches))
    if isinstance(data, WarmupDataModule):
        return max(1, data.batch_size // num_micro_batches)
    raise ValueError(
        f"{type(module).__name__} with {type(data).__name__} cannot be planned for; `plan` knows GRPOModule with "
        "PromptDataModule and WarmupModule with WarmupDataModule."
    )


def num_processes(trainer: Mapping[str, Any]) -> int:
    """Returns the number of processes of the run; 1 where the configuration leaves it to the machine."""
    devices = str(trainer["devices"])  # a number on the command line is read as text
    return (int(devices) if devices.isdecimal() else 1) * int(trainer["num_nodes"])


def has_bridge(student: ModelPlan, teacher: ModelPlan) -> bool:
    """Returns True if hand-overs go through text, judged by the widths of the logits where a tokenizer is missing."""
    if all(published_config_folder(model.name) for model in (student, teacher)):
        return False  # one family
    try:
        return needs_bridge(*(load_tokenizer(model.name, model.loading) for model in (student, teacher)))
    except (RuntimeError, FileNotFoundError):
        return bool(student.config.vocab_size != teacher.config.vocab_size)


def plans_for_gpu(trainer: Mapping[str, Any], device_memory_gb: float | None) -> bool:
    """Returns True if the configuration is for a GPU: it says so, there is one, or the size of one was given."""
    accelerator = trainer["accelerator"]
    if accelerator == "auto":
        return torch.cuda.is_available() or device_memory_gb is not None
    return accelerator in ("gpu", "cuda")


def own_memory_bytes(is_gpu: bool) -> float:
    """Returns the size of this machine's GPU memory, or of its RAM.

    Raises ValueError if a GPU is wanted and there is none.
    """
    if not is_gpu:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if not torch.cuda.is_available():
        raise ValueError("This machine has no GPU to plan for; say how large it is with --device_memory_gb.")
    return float(torch.cuda.get_device_properties(0).total_memory)
