"""Opening models and tokenizers by name: the embedded pair, a local folder, or a model hub."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from relay_lightning.models.architecture import check_supported
from relay_lightning.models.published import published_config_folder
from relay_lightning.models.quantization import keep_trainable, nf4_arguments, require_bitsandbytes
from relay_lightning.models.settings import DEFAULT, FLASH_ATTENTION, LoadSettings
from relay_lightning.models.weight_checksums import CHECKSUM_FILE, require_checksums
from relay_lightning.models.weight_files import require_all_weights, weight_files

TINY_PREFIX = "tiny:"
TINY_NAMES = ("student", "warm-student", "relay-student", "teacher")
VOCABULARY_FILES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken")
"""Patterns of the files that hold a vocabulary."""
CHECKPOINT_SUFFIX = ".ckpt"
GGUF_SUFFIX = ".gguf"
FOLDER_NEEDED = "name a folder that holds config.json and *.safetensors."
TINY_FOLDER = Path(__file__).parent.parent / "tiny" / "checkpoints"


def resolve_checkpoint(name: str) -> str:
    """What Transformers is to open for `name`: the path of a folder, or a hub id as it is.

    "tiny:" and one of `TINY_NAMES` is a model of the embedded pair. Raises ValueError for another tiny name, a URL, a
    file, a run folder and a folder of adapters alone, and FileNotFoundError for a folder that is missing or holds no
    model.
    """
    if "://" in name:
        raise ValueError(
            f"The model {name!r} is a URL; name a local folder or a hub id. A served model cannot be used."
        )
    if name.startswith(TINY_PREFIX):
        tiny = name.removeprefix(TINY_PREFIX)
        if tiny not in TINY_NAMES:
            raise ValueError(f"model {name!r} is unknown; the embedded ones are {', '.join(map(_tiny, TINY_NAMES))}")
        return _existing_folder(name, TINY_FOLDER / tiny)
    folder = Path(name).expanduser()
    if folder.exists() or _looks_like_path(name):
        return _existing_folder(name, folder)
    return name


def load_model(
    name: str,
    dtype: torch.dtype | None = None,
    settings: LoadSettings = DEFAULT,
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The causal language model `name` on `device`, as `settings` say.

    dtype: where the settings name none; None takes the one of the model's config. Opens safetensors only, and runs no
    code that comes with a model unless the settings allow it. Raises as `resolve_checkpoint` does, ValueError for an
    architecture that the relay cannot run and for weights that differ from their checksums, if the model has some, and
    RuntimeError, with the reason, when the model cannot be opened so.
    """
    path = resolve_checkpoint(name)
    chosen = settings.torch_dtype or dtype
    options: dict[str, Any] = {"attn_implementation": attention_backend(name, settings)}
    if settings.quantization == "nf4":
        chosen = chosen or _own_dtype(name, path, settings)
        options |= nf4_arguments(name, chosen, torch.device(device))
    config = _open(AutoConfig.from_pretrained, "model", name, path, settings)
    require_all_weights(name, path, config, trust_remote_code=settings.trust_remote_code)
    if checksums := read_model_file(name, CHECKSUM_FILE):
        require_checksums(name, weight_files(path), checksums[1])
    model = _open(
        AutoModelForCausalLM.from_pretrained,
        "model",
        name,
        path,
        settings,
        dtype="auto" if chosen is None else chosen,
        use_safetensors=True,
        **options,
    )
    check_supported(model)
    if settings.quantization == "nf4":
        keep_trainable(model)
    return model.to(device)


def load_untrained(name: str, settings: LoadSettings, device: torch.device | str = "cpu") -> PreTrainedModel:
    """A student as training finds it: fp32 where the settings say nothing else, on `device` if quantised there.

    Raises as `load_model` does.
    """
    is_quantized = settings.quantization is not None
    return load_model(name, None if is_quantized else torch.float32, settings, device if is_quantized else "cpu")


def load_tokenizer(name: str, settings: LoadSettings = DEFAULT) -> PreTrainedTokenizerBase:
    """The tokenizer of `name`, with the chat template of the settings if they name one.

    Raises as `load_model` does, and FileNotFoundError for a folder without a tokenizer and a missing chat template.
    """
    path = resolve_checkpoint(name)
    has_vocabulary = not Path(path).is_dir() or any(any(Path(path).glob(pattern)) for pattern in VOCABULARY_FILES)
    try:
        tokenizer = _open(AutoTokenizer.from_pretrained, "tokenizer", name, path, settings)
    except RuntimeError:
        if has_vocabulary:
            raise
        raise FileNotFoundError(_no_tokenizer(name)) from None
    # Without a file Transformers makes an empty tokenizer of some classes; a few classes need none (ByT5).
    if not has_vocabulary and len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder):
        raise FileNotFoundError(_no_tokenizer(name))
    if settings.chat_template is not None:
        tokenizer.chat_template = _read_template(settings.chat_template)
    return tokenizer


def load_config(name: str, settings: LoadSettings = DEFAULT) -> PreTrainedConfig:
    """The architecture of `name`, without its weights; the published Qwen3 ones need no network.

    Raises as `load_model` does.
    """
    path = published_config_folder(name) or resolve_checkpoint(name)
    return _open(AutoConfig.from_pretrained, "model", name, str(path), settings)


def read_model_file(name: str, file_name: str) -> tuple[str, str] | None:
    """The path and the text of a file beside the weights of `name`; None where there is none or no hub to ask.

    Raises as `resolve_checkpoint` does, and ValueError for a file that is not UTF-8.
    """
    path = cached_file(
        resolve_checkpoint(name),
        file_name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        return path, Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: it is not UTF-8 text ({error}).") from error


def require_loadable(name: str, settings: LoadSettings) -> None:
    """Raises RuntimeError where `settings` ask for what this machine lacks; nothing is read."""
    attention_backend(name, settings)
    if settings.quantization == "nf4":
        require_bitsandbytes(name)


def attention_backend(name: str, settings: LoadSettings) -> str | None:
    """The attention that `settings` name; None leaves it to Transformers, which takes sdpa where a model has it.

    Raises RuntimeError if flash-attn is asked for and absent.
    """
    if settings.attention == FLASH_ATTENTION and find_spec("flash_attn") is None:
        raise RuntimeError(
            f"The model {name!r} is to use attention: {FLASH_ATTENTION}, but flash-attn is not installed; "
            "pip install 'relay-lightning[flash-attn]' on a machine with CUDA, or set attention: sdpa."
        )
    return None if settings.attention == "auto" else settings.attention


def _no_tokenizer(name: str) -> str:
    return (
        f"The folder {name!r} holds no tokenizer; copy tokenizer.json and tokenizer_config.json of its model into it "
        "(or tokenizer.model, vocab.json and merges.txt, whichever the model has)."
    )


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileNotFoundError(f"The chat template {path} cannot be read: {error}.") from None


def _own_dtype(name: str, path: str, settings: LoadSettings) -> torch.dtype:
    """The dtype that the model's config names; fp32 where it names none."""
    config = _open(AutoConfig.from_pretrained, "model", name, path, settings)
    return config.dtype or torch.float32


def _open(opener: Any, what: str, name: str, path: str, settings: LoadSettings, **kwargs: Any) -> Any:
    try:
        return opener(path, trust_remote_code=settings.trust_remote_code, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file, or a config that an architecture does not expect, fails in many ways
        raise RuntimeError(_why_not_opened(what, name, path, error)) from error


def _why_not_opened(what: str, name: str, path: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if Path(path).is_dir():
        return f"The {what} {name!r} cannot be opened. Reason: {reason}"
    return (
        f"The {what} {name!r} is not a local folder, and the model hub did not give it; without network, name the "
        f"folder that holds its config.json and safetensors, such as ./{name.rpartition('/')[2]}. Reason: {reason}"
    )


def _existing_folder(name: str, folder: Path) -> str:
    if folder.is_file():
        raise ValueError(f"The model {name!r} is a file{_advice_on_file(folder)}")
    if not folder.is_dir():
        raise FileNotFoundError(f"The model folder {name!r} does not exist.")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ValueError(f"The folder {name!r} holds adapters without their model; export them with --merge true.")
        for checkpoint in (folder / "checkpoints" / "last.ckpt", folder / "last.ckpt"):
            if checkpoint.is_file():
                raise ValueError(f"The folder {name!r} is that of a run, not of a model; {_export(checkpoint)}")
        raise FileNotFoundError(f"The model folder {name!r} holds no config.json.{_advice_on_folder(folder)}")
    return str(folder)


def _advice_on_file(path: Path) -> str:
    if path.suffix == CHECKPOINT_SUFFIX:
        return f": the checkpoint of a run; {_export(path)}"
    if path.suffix == GGUF_SUFFIX:
        return f" in GGUF format, which is not supported; {FOLDER_NEEDED}"
    return f"; {FOLDER_NEEDED}"


def _advice_on_folder(folder: Path) -> str:
    has_gguf = any(folder.glob(f"*{GGUF_SUFFIX}"))
    return f" It holds a GGUF file, a format that is not supported; {FOLDER_NEEDED}" if has_gguf else ""


def _export(checkpoint: Path) -> str:
    return (
        "make a model folder of it with python -m relay_lightning export "
        f"--ckpt_path {checkpoint} --output FOLDER, and name that folder."
    )


def _looks_like_path(name: str) -> bool:
    """True for a name that can only be a path: a hub id is `name` or `owner/name`."""
    is_file_name = Path(name).suffix in (CHECKPOINT_SUFFIX, GGUF_SUFFIX, ".safetensors")
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or is_file_name


def _tiny(name: str) -> str:
    return TINY_PREFIX + name
