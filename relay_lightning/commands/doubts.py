"""Checks of a run before anything is loaded: a checkpoint of another stage, and settings that cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from relay_lightning.commands.export import module_config
from relay_lightning.modules.base import RelayModule

MIN_ANSWER_TOKENS = 32
"""A reasoned answer in a box seldom takes fewer tokens."""


def require_same_stage(checkpoint: dict[str, Any], ckpt_path: str, class_path: str) -> None:
    """Raises ValueError for a checkpoint that another module than `class_path` has trained, such as the warm-up."""
    trained = module_config(checkpoint).get("class_path")
    if trained is not None and _class_name(trained) != _class_name(class_path):
        raise ValueError(
            f"The checkpoint {ckpt_path} was trained by {_class_name(trained)} and cannot be continued by "
            f"{_class_name(class_path)}; to start from its weights, make a model folder of it with python -m "
            f"relay_lightning export --ckpt_path {ckpt_path} --output FOLDER, and set --model.student FOLDER."
        )


def doubts(module: RelayModule) -> Iterator[str]:
    """A sentence for each setting with which training can teach nothing."""
    if module.student_name == module.teacher_name:
        yield f"Student and teacher are both {module.student_name!r}: a call cannot help."
    if module.max_completion_tokens < MIN_ANSWER_TOKENS:
        yield (
            f"model.max_completion_tokens is {module.max_completion_tokens}, which is too short for an answer in a "
            "box: every completion is likely to be wrong."
        )


def _class_name(class_path: str) -> str:
    return class_path.rpartition(".")[2]
