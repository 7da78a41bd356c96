"""The forward pass of a Llama-like decoder in few operations, over the live modules of a Hugging Face model.

What Transformers computes, without the steps that only training and other attention functions need. Linear layers are
called as modules, so adapters and quantised weights take part.

Shapes: N rows, T new tokens, E hidden size, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from relay_lightning.engine.kv_cache import SlotKVCache

MODEL_TYPES = frozenset({"llama", "qwen2", "qwen3"})
"""Architectures whose layers are exactly `_layer`: RMS norms, rotated halves, a gated MLP, no other scale or cap."""


def can_run_blocks(model: Any) -> bool:
    """Whether `run_blocks` computes what the decoder of `model` does."""
    config = model.config
    return config.model_type in MODEL_TYPES and config.rope_parameters.get("rope_type", "default") == "default"


def run_blocks(decoder: Any, token_ids: Tensor, positions: Tensor, cache: SlotKVCache) -> Tensor:
    """Hidden states of the new tokens behind the last norm, [N, T, E]; appends their keys and values to `cache`.

    decoder: the model without its head; token_ids, positions: [N, T]. The pass must have been announced to the cache.
    """
    hidden = decoder.embed_tokens(token_ids)
    cosine, sine = decoder.rotary_emb(hidden, positions)  # [N, T, D]
    rotation = cosine[:, :, None], sine[:, :, None]
    for layer in decoder.layers:
        hidden = _layer(layer, hidden, rotation, cache)
    return _norm(decoder.norm, hidden)


def _layer(layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor], cache: SlotKVCache) -> Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    normed = _norm(layer.input_layernorm, hidden)
    split = (*normed.shape[:2], -1, attention.head_dim)
    query, key = attention.q_proj(normed).view(split), attention.k_proj(normed).view(split)
    value = attention.v_proj(normed).view(split)
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    query, key = _rotate(query, key, *rotation)
    attended = cache.attend(query, key, value, attention.layer_idx, attention.scaling)
    hidden = hidden + attention.o_proj(attended.flatten(2))
    normed = _norm(layer.post_attention_layernorm, hidden)
    return hidden + mlp.down_proj(mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def _norm(norm: Any, states: Tensor) -> Tensor:
    return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotate(query: Tensor, key: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions: the halves of each head of both, [N, T, H, D] and [N, T, K, D], turned as pairs."""
    num_heads = query.shape[2]
    both = torch.cat((query, key), 2)
    first, second = both.chunk(2, -1)
    turned = (both * cosine).addcmul_(torch.cat((-second, first), -1), sine)
    return turned[:, :, :num_heads], turned[:, :, num_heads:]
