"""What a Hugging Face model is: whether the relay can run it, where it ends, how long it reads, what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from relay_lightning.models.quantization import is_quantized

WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Layer types that attend to part of the context, and the config's key for how many tokens that is."""

SELECTIONS = ("keep_window_size", "index_topk")
"""Config keys for how many tokens of a longer context a layer selects to attend to."""


def check_supported(model: PreTrainedModel, context: int | None = None) -> None:
    """Raises ValueError with the reason when `model` does not attend to all tokens through a plain key/value cache.

    context: tokens that it will read at most, by default all that its config allows. What the class and the config do
    not tell, `engine.probe` finds out.
    """
    config = model.config
    name = model_title(model)
    if not hasattr(config, "vocab_size") or model.get_output_embeddings() is None:
        raise ValueError(f"{name} is not a causal language model over one vocabulary; relay decoding needs one")
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder model; relay decoding needs a decoder-only model")
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"{name} keeps a recurrent state instead of keys and values; relay decoding cannot use it")
    if reason := _partial_attention(config, context):
        raise ValueError(f"{name} has {reason}; relay decoding needs full attention in every layer")
    if not model._supports_attention_backend:
        raise ValueError(
            f"{name} does not attend through Transformers' attention interface; relay decoding cannot use it"
        )


def model_title(model: PreTrainedModel) -> str:
    """The class of the model, and the name it was opened by if there is one, for messages."""
    name = getattr(model, "name_or_path", "")
    return f"{name} ({type(model).__name__})" if name else type(model).__name__


def _partial_attention(config: PreTrainedConfig, context: int | None) -> str | None:
    """Names the layers that do not see all of a context, or None. A window as long as the context is full attention."""
    context = known_context(config) if context is None else context
    layer_types = set(getattr(config, "layer_types", None) or ())
    if not layer_types and getattr(config, "use_sliding_window", True):
        layer_types = {"sliding_attention"} if getattr(config, "sliding_window", None) else set()
    kinds = []
    for kind in sorted(layer_types - {"full_attention"}):
        window = getattr(config, WINDOWS[kind], None) if kind in WINDOWS else None
        if window is None:
            kinds.append(kind)
        elif context is None or window < context:
            kinds.append(f"{kind} with a window of {window} tokens")
    for key in SELECTIONS:
        size = getattr(config, key, None)
        if size is not None and (context is None or size < context):
            kinds.append(f"attention to {size} selected tokens ({key})")
    return ", ".join(kinds) or None


def recompute_activations(model: PreTrainedModel) -> None:
    """Has `model` compute its activations anew in the backward pass, block by block, in place of keeping them."""
    # Transformers 5.17 knows the older name alone; the newest warns about it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def describe(model: PreTrainedModel) -> str:
    """One line: size, number formats, attention, bytes."""
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    dtype = str(model.dtype).removeprefix("torch.")
    return (
        f"{model.num_parameters() / 1e6:,.1f} M parameters ({num_trained / 1e6:,.1f} M trained), "
        f"{'nf4, ' if is_quantized(model) else ''}{dtype}, attention {model.config._attn_implementation}, "
        f"{model.get_memory_footprint() / 1e9:.2f} GB"
    )


def eos_token_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """The ids that end a text by the generation config, then those by the config; empty when neither names one."""
    found: list[int] = []
    for config in (model.generation_config, model.config):
        ids = getattr(config, "eos_token_id", None)
        found += [ids] if isinstance(ids, int) else ids or []
    return tuple(dict.fromkeys(found))


def max_context(model: PreTrainedModel | PreTrainedConfig) -> int:
    """Positions that a model, also given by its config, can tell apart. Raises ValueError if the config lacks them."""
    config = getattr(model, "config", model)
    length = known_context(config)
    if length is None:
        raise ValueError(f"{model_title(model)} does not say max_position_embeddings; pass max_context")
    return length


def known_context(config: PreTrainedConfig) -> int | None:
    """Tokens that a model of `config` reads at most, or None if the config does not say.

    At most `constant_rotation`: keys that are cached could not be rotated again.
    """
    length = getattr(config, "max_position_embeddings", None)
    return min((int(limit) for limit in (length, constant_rotation(config)) if limit), default=None)


def constant_rotation(config: PreTrainedConfig) -> int | None:
    """Length up to which a token's rotation does not depend on its sequence; None if it never does.

    Beyond it, longrope and dynamic NTK rotate all positions with other frequencies.
    """
    limits = []
    for parameters in _rotations(config):
        rope_type = parameters.get("rope_type") or "default"
        if rope_type == "longrope":
            limits.append(int(parameters["original_max_position_embeddings"]))
        elif "dynamic" in rope_type:
            limits.append(int(config.max_position_embeddings))
    return min(limits, default=None)


def _rotations(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """Parameters of every rotary embedding of a model: one, or one per type of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    per_layer_type = [value for value in parameters.values() if isinstance(value, dict)]
    yield from per_layer_type or [parameters]
