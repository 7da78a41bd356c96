"""Weight files of a model, checked by their headers before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils import logging as transformers_logging

FAULTS = {
    "missing_keys": "lack the weight",
    "mismatched_keys": "have another shape for the weight",
    "unexpected_keys": "hold the weight",
}
"""Keys of Transformers' account of loading, and what each means for the files of a model."""


def require_all_weights(name: str, path: str, config: PreTrainedConfig, *, trust_remote_code: bool) -> None:
    """Raises ValueError for files that are damaged or do not hold the weights of `config`, each in its shape.

    Transformers would initialise a missing weight at random. A tied weight may be absent. Weights that are stored
    quantised, and models without safetensors, are left to Transformers.
    """
    files = weight_files(path)
    if not files or getattr(config, "quantization_config", None) is not None:
        return
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_header(name, file)
    try:
        with torch.device("meta"):
            model_class = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
        account = _load_empty(model_class, config, weights)
    except Exception:  # a model that cannot be built is refused, with the reason, when it is opened
        return
    for key, fault in FAULTS.items():
        if found := sorted(map(_weight_name, account[key])):
            rest = f" and {len(found) - 1} more" if len(found) > 1 else ""
            subject = f"The files of the model {name!r} {fault} {found[0]}{rest}"
            raise ValueError(f"{subject}, which does not fit its config.json: they are damaged or of another model.")


def weight_files(path: str) -> list[Path]:
    """The safetensors files of a folder or hub id; empty if it has none."""
    options: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    if whole := cached_file(path, SAFE_WEIGHTS_NAME, **options):
        return [Path(whole)]
    index = cached_file(path, SAFE_WEIGHTS_INDEX_NAME, **options)
    if index is None:
        return []
    try:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"The file {index} is damaged: it is not an index of weights ({error}).") from error
    found = {name: cached_file(path, name, **options) for name in names}
    if missing := [name for name, file in found.items() if file is None]:
        raise ValueError(f"The model {path!r} lacks its file {missing[0]}.")
    return [Path(file) for file in found.values() if file]


def read_header(name: str, file: Path) -> dict[str, Tensor]:
    """Empty tensors of the names and shapes that a file holds. Raises ValueError if it is damaged."""
    try:
        with safe_open(file, "pt") as opened:
            return {key: torch.empty(opened.get_slice(key).get_shape(), device="meta") for key in opened.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises a type of its own
        raise ValueError(f"The file {file} of the model {name!r} is damaged: {error}.") from error


def _load_empty(model_class: Any, config: PreTrainedConfig, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Transformers' account of loading the empty `weights`: names are converted as in earnest."""
    verbosity = transformers_logging.get_verbosity()
    is_bar_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        _, account = model_class.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
        if is_bar_shown:
            transformers_logging.enable_progress_bar()
    return account


def _weight_name(key: Any) -> str:
    """A mismatched weight comes with its shapes."""
    return key if isinstance(key, str) else str(key[0])
