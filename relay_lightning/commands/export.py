"""`export`: a checkpoint as a folder that plain Transformers (or PEFT) opens."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from relay_lightning.callbacks.checkpoint_io import read_checkpoint
from relay_lightning.callbacks.config_writer import CONFIG_KEY
from relay_lightning.commands.parser import run_function
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.files import new_folder
from relay_lightning.models.loading import load_model, load_tokenizer
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.quantization import dequantized
from relay_lightning.models.settings import LoadSettings
from relay_lightning.models.weight_checksums import write_checksums
from relay_lightning.relay.relay_config import RELAY_CONFIG_FILE, RelayConfig, read_relay_config
from relay_lightning.relay.requests import CallLimits
from relay_lightning.terminal import print_line

STUDENT_PREFIX = "student."
"""Where the student stands in a module's state."""
LIMITS = tuple(field.name for field in fields(CallLimits))
"""The settings of a module that limit calls."""


def export(ckpt_path: str, output: str, merge: bool = False, trust_remote_code: bool = False) -> None:
    """Writes the trained student, its tokenizer and chat template to the folder OUTPUT, as safetensors.

    `relay_config.json` beside them keeps the run's call limits and how it was evaluated: `load_relay`, `generate` and
    training take them as their defaults. `SHA256SUMS` holds the checksums of the weights, which are compared when the
    folder is loaded.

    A student trained with LoRA is written as its adapters alone, or with `--merge true` as a whole fp32 model that has
    them added to its weights. Adapters of a 4-bit student are added to its weights as 4 bits had them: those are the
    weights that they were trained on.

    Args:
        ckpt_path: checkpoint of a run, such as runs/grpo/checkpoints/last.ckpt.
        output: folder to write; must not exist, or be empty.
        merge: add LoRA adapters to the weights.
        trust_remote_code: whether code that comes with the student may run; what the checkpoint says of it is ignored.
    """
    with new_folder(Path(output)) as folder:
        step = _export(ckpt_path, folder, merge, trust_remote_code)
    print_line(f"step {step} of {ckpt_path}: {folder}")


def _export(ckpt_path: str, folder: Path, merge: bool, trust_remote_code: bool) -> int:
    """Fills the folder; returns the optimiser step of the checkpoint."""
    checkpoint = read_checkpoint(Path(ckpt_path))
    settings = model_settings(checkpoint, ckpt_path)
    loading = replace(LoadSettings(**(settings.get("student_loading") or {})), trust_remote_code=trust_remote_code)
    config = trained_config(settings)
    student = load_model(settings["student"], torch.float32, unquantized(loading))
    lora = settings.get("lora")
    if merge and not lora:
        raise ValueError(f"{ckpt_path} was trained without LoRA: there is nothing to merge.")
    if lora:
        add_lora(student, LoRASettings(**lora))
    load_student_weights(student, checkpoint, ckpt_path)
    if merge:
        student = merged(student, settings["student"], loading)
    student.save_pretrained(folder, safe_serialization=True)
    load_tokenizer(settings["student"], loading).save_pretrained(folder)
    (folder / RELAY_CONFIG_FILE).write_text(config.to_json(), encoding="utf-8")
    write_checksums(folder)
    return int(checkpoint["global_step"])


def model_settings(checkpoint: dict[str, Any], ckpt_path: str) -> dict[str, Any]:
    """The arguments of the module that was trained. Raises ValueError if the checkpoint does not say."""
    settings = module_config(checkpoint).get("init_args", {})
    if "student" not in settings:
        raise ValueError(
            f"{ckpt_path} does not say which student it trained; only checkpoints of `fit` can be exported."
        )
    return settings


def trained_config(settings: dict[str, Any]) -> RelayConfig:
    """The limits that a student was trained under, and the sampling of its run's evaluation."""
    config = read_relay_config(settings["student"])
    limits = {name: settings[name] for name in LIMITS if name in settings}
    budget = {name: settings[name] for name in ("max_completion_tokens",) if name in settings}
    return replace(
        config.override(**limits),
        sampling=SamplingParams(**budget, temperature=0.0),
        teacher=settings.get("teacher"),
    )


def module_config(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """`class_path` and `init_args` of the module that was trained; empty if the checkpoint does not say."""
    config = yaml.safe_load(checkpoint.get(CONFIG_KEY, "")) or {}
    return config.get("model", {})


def load_student_weights(student: Any, checkpoint: dict[str, Any], ckpt_path: str) -> None:
    """Puts the trained weights into `student`. Raises ValueError naming one that does not fit."""
    weights = {
        name.removeprefix(STUDENT_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(STUDENT_PREFIX)
    }
    own = student.state_dict()
    foreign = [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]
    if foreign or not weights:
        raise ValueError(f"{ckpt_path} does not fit its student: {foreign[0] if foreign else 'it has no weights'}.")
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    if missing := sorted(trained - weights.keys()):
        raise ValueError(f"{ckpt_path} does not fit its student: it lacks the weight {missing[0]}.")
    student.load_state_dict(weights, strict=False)


def unquantized(loading: LoadSettings) -> LoadSettings:
    """The same in fp32 and whole: what adapters are put on to be written."""
    return replace(loading, dtype="fp32", quantization=None)


def merged(student: Any, student_name: str, loading: LoadSettings) -> Any:
    """The student's own checkpoint, fp32, with the adapters of `student` added to its weights.

    Of a quantised student it is the weights that 4 bits stand for.
    """
    from peft import PeftModel

    if loading.quantization is None:
        base = load_model(student_name, torch.float32, unquantized(loading))
    else:
        base = dequantized(load_model(student_name, None, loading))
    with TemporaryDirectory() as folder:
        student.save_pretrained(folder)
        return PeftModel.from_pretrained(base, folder).merge_and_unload()


def main(arguments: list[str]) -> None:
    """The subcommand."""
    run_function(export, arguments)
