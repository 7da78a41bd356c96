"""The forward pass of a Llama-like decoder in few operations, over the live modules of a Hugging Face model.

What Transformers computes, without the steps that only training and other attention functions need. Linear layers are
called as modules, so adapters and quantised weights take part.

Shapes: N rows, T new tokens, E hidden size, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from typing import Any

from relay_kernels import add_rms_norm, rotate_heads, silu_mul
from torch import Tensor

from relay_lightning.engine.kv_cache import SlotKVCache

MODEL_TYPES = frozenset({"llama", "qwen2", "qwen3"})
"""Architectures whose layers are exactly `_layer`: RMS norms, rotated halves, a gated MLP, no other scale or cap."""


def can_run_blocks(model: Any) -> bool:
    """Whether `run_blocks` computes what the decoder of `model` does."""
    config = model.config
    has_default_rope = config.rope_parameters.get("rope_type", "default") == "default"
    return config.model_type in MODEL_TYPES and has_default_rope and config.hidden_act == "silu"


def run_blocks(decoder: Any, token_ids: Tensor, positions: Tensor, cache: SlotKVCache) -> Tensor:
    """Hidden states of the new tokens behind the last norm, [N, T, E]; appends their keys and values to `cache`.

    decoder: the model without its head; token_ids, positions: [N, T]. The pass must have been announced to the cache.
    """
    hidden, update = decoder.embed_tokens(token_ids), None
    rotation = decoder.rotary_emb(hidden, positions)  # cosine and sine, [N, T, D]
    for layer in decoder.layers:
        hidden, update = _layer(layer, hidden, update, rotation, cache)
    normed, _ = _norm(decoder.norm, hidden, update)
    return normed


def _layer(
    layer: Any, hidden: Tensor, update: Tensor | None, rotation: tuple[Tensor, Tensor], cache: SlotKVCache
) -> tuple[Tensor, Tensor]:
    """The states before the layer's last sum, and what is to be added to them; the next norm adds."""
    attention, mlp = layer.self_attn, layer.mlp
    normed, hidden = _norm(layer.input_layernorm, hidden, update)
    split = (*normed.shape[:2], -1, attention.head_dim)
    query, key = attention.q_proj(normed).view(split), attention.k_proj(normed).view(split)
    value = attention.v_proj(normed).view(split)
    query, key = rotate_heads(query, key, *rotation, *_head_norms(attention))
    attended = cache.attend(query, key, value, attention.layer_idx, attention.scaling)
    normed, hidden = _norm(layer.post_attention_layernorm, hidden, attention.o_proj(attended.flatten(2)))
    return hidden, mlp.down_proj(silu_mul(mlp.gate_proj(normed), mlp.up_proj(normed)))


def _norm(norm: Any, hidden: Tensor, update: Tensor | None) -> tuple[Tensor, Tensor]:
    """(the norm of hidden + update, their sum)."""
    return add_rms_norm(hidden, norm.weight, norm.variance_epsilon, update)


def _head_norms(attention: Any) -> tuple[Any, ...]:
    """Weights and epsilon of the norms of each head, where the architecture has them."""
    if not hasattr(attention, "q_norm"):
        return ()
    return attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon
