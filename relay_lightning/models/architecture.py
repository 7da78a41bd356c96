"""What a Hugging Face model is: whether the relay can run it, where it ends, how long it reads, what it keeps."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

from relay_lightning.models.quantization import is_quantized


def check_supported(model: PreTrainedModel) -> None:
    """Raises ValueError with the reason when `model` does not attend to all tokens through a plain key/value cache."""
    config = model.config
    name = type(model).__name__
    if not hasattr(config, "vocab_size") or model.get_output_embeddings() is None:
        raise ValueError(f"{name} is not a causal language model over one vocabulary; relay decoding needs one")
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder-decoder model; relay decoding needs a decoder-only model")
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"{name} keeps a recurrent state instead of keys and values; relay decoding cannot use it")
    layer_types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if layer_types - {"full_attention"} or (window is not None and not layer_types):
        kinds = ", ".join(sorted(layer_types - {"full_attention"})) or f"a sliding window of {window} tokens"
        raise ValueError(f"{name} has {kinds}; relay decoding needs full attention in every layer")


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
    length = getattr(getattr(model, "config", model), "max_position_embeddings", None)
    if length is None:
        raise ValueError(f"{type(model).__name__} does not say max_position_embeddings; pass max_context")
    return int(length)
