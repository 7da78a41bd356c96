"""Opening models and tokenizers by name: the embedded pair, a local folder, or a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from relay_lightning.models.architecture import check_supported

TINY_PREFIX = "tiny:"
TINY_NAMES = ("student", "warm-student", "teacher")
TINY_FOLDER = Path(__file__).parent.parent / "tiny" / "checkpoints"


def resolve_checkpoint(name: str) -> str:
    """What Transformers is to open for `name`: the path of a folder, or a hub id as it is.

    "tiny:student", "tiny:warm-student" and "tiny:teacher" are the embedded pair. Raises ValueError for another tiny
    name and FileNotFoundError for a folder that is missing or holds no model.
    """
    if name.startswith(TINY_PREFIX):
        tiny = name.removeprefix(TINY_PREFIX)
        if tiny not in TINY_NAMES:
            raise ValueError(f"model {name!r} is unknown; the embedded ones are {', '.join(map(_tiny, TINY_NAMES))}")
        return _existing_folder(name, TINY_FOLDER / tiny)
    folder = Path(name).expanduser()
    if folder.is_dir() or _looks_like_path(name):
        return _existing_folder(name, folder)
    return name


def load_model(name: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The causal language model `name`, on the CPU, in `dtype` or, by default, the one that its config names.

    Opens safetensors only and runs no code that comes with a model. Raises as `resolve_checkpoint` does, ValueError
    for an architecture that the relay cannot run, and RuntimeError, with the reason, when the model cannot be opened.
    """
    path = resolve_checkpoint(name)
    chosen = "auto" if dtype is None else dtype
    model = _open(AutoModelForCausalLM.from_pretrained, "model", name, path, dtype=chosen, use_safetensors=True)
    check_supported(model)
    return model


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`. Raises as `load_model` does."""
    return _open(AutoTokenizer.from_pretrained, "tokenizer", name, resolve_checkpoint(name))


def _open(opener: Any, what: str, name: str, path: str, **kwargs: Any) -> Any:
    try:
        return opener(path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())
        hint = "" if Path(path).is_dir() else " It is not a local folder, so a model hub was asked."
        raise RuntimeError(f"The {what} {name!r} cannot be opened.{hint} Reason: {reason}") from error


def _existing_folder(name: str, folder: Path) -> str:
    if not folder.is_dir():
        raise FileNotFoundError(f"The model folder {name!r} does not exist.")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"The model folder {name!r} holds no config.json.")
    return str(folder)


def _looks_like_path(name: str) -> bool:
    """Whether a name can only mean a folder: a hub id is `name` or `owner/name`."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def _tiny(name: str) -> str:
    return TINY_PREFIX + name
