"""The forward pass of a Llama-like decoder in few operations, over the live weights of a Hugging Face model.

What Transformers computes, without the steps that only training and other attention functions need. A linear layer that
is more than its weight (an adapter, a quantised one, one with hooks) is called as the module it is.

Shapes: N rows, T new tokens, E hidden size, H query heads, K key/value heads, D head size, L longest context.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from relay_kernels import add_rms_norm, decode_attention, norm_linear, rotate_heads, silu_mul
from torch import Tensor, nn
from torch.nn import functional

from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.models.lm_head import is_plain_linear

MODEL_TYPES = frozenset({"llama", "qwen2", "qwen3"})
"""Architectures whose layers are exactly `Blocks`: RMS norms, rotated halves, a gated MLP, no other scale or cap."""

FUSED_DEVICES = frozenset({"cuda"})
"""Where a norm and the plain linear layers behind it are one operator, which itself takes many rows apart again."""

Linear = Callable[[Tensor], Tensor]
NormLinear = Callable[[Tensor, Tensor | None], tuple[Sequence[Tensor], Tensor]]
"""Hidden states and their update to what the linear layers make of the normed sum, and the sum."""


def can_run_blocks(model: Any) -> bool:
    """Whether `Blocks` computes what the decoder of `model` does."""
    config = model.config
    if config.model_type not in MODEL_TYPES or config.hidden_act != "silu":
        return False
    return bool(config.rope_parameters.get("rope_type", "default") == "default")


@dataclass(frozen=True, slots=True)
class _Block:
    """What one layer computes with."""

    query_key_value: NormLinear
    head_size: int
    head_norms: tuple[Any, ...]
    """Weights and epsilon of the norms of each query and key head, where the architecture has them."""
    scaling: float
    output: Linear
    gated: NormLinear
    down: Linear


class Blocks:
    """`ForwardPass` over the parameters of a model as they lie in memory when it is built."""

    def __init__(self, model: Any, max_length: int) -> None:
        """model: a causal model of which `can_run_blocks` is true; max_length: L."""
        decoder = model.get_decoder()
        self._head = _linear(model.get_output_embeddings())
        self._embed = decoder.embed_tokens
        self._blocks = [_take_apart(layer) for layer in decoder.layers]
        self._last_norm = _norm(decoder.norm)
        positions = torch.arange(max_length, device=decoder.embed_tokens.weight.device)[None]
        like = decoder.embed_tokens.weight[:1, None]
        self._rotations = torch.cat(decoder.rotary_emb(like, positions), -1)[0]
        """[L, 2D]: cosine and sine of every position."""

    def step(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> tuple[Tensor, Tensor | None]:
        hidden = self.extend(token_ids, positions, cache)[:, -1]
        return self._head(hidden), hidden

    def extend(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> Tensor:
        num_rows, num_tokens = token_ids.shape
        hidden, update = self._embed(token_ids.flatten()), None  # [N * T, E]: matrices are a little cheaper to multiply
        rotation = functional.embedding(positions, self._rotations).chunk(2, -1)
        for index, block in enumerate(self._blocks):
            projected, hidden = block.query_key_value(hidden, update)
            query, key, value = (states.view(num_rows, num_tokens, -1, block.head_size) for states in projected)
            del projected  # No name may hold the wide states of a layer while the next ones are computed.
            query, key = rotate_heads(query, key, *rotation, *block.head_norms)
            attended = decode_attention(**cache.attention_inputs(query, key, value, index), scale=block.scaling)
            [gated], hidden = block.gated(hidden, block.output(attended.view(num_rows * num_tokens, -1)))
            update = block.down(gated)
            del gated
        normed, _ = add_rms_norm(hidden, *self._last_norm, update)
        return normed.view(num_rows, num_tokens, -1)


def _take_apart(layer: Any) -> _Block:
    attention, mlp = layer.self_attn, layer.mlp
    return _Block(
        query_key_value=_norm_linear(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj),
        head_size=attention.head_dim,
        head_norms=_head_norms(attention),
        scaling=attention.scaling,
        output=_linear(attention.o_proj),
        gated=_norm_linear(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj, is_gated=True),
        down=_linear(mlp.down_proj),
    )


def _norm_linear(norm: Any, *modules: nn.Module, is_gated: bool = False) -> NormLinear:
    """A norm and the layers that read it; `is_gated`: two of them, of which silu(first) * second is left."""
    norm_weight, eps = _norm(norm)
    if norm_weight.device.type in FUSED_DEVICES and all(map(is_plain_linear, modules)):
        layers = [module.weight for module in modules], [module.bias for module in modules]
        return lambda hidden, update: norm_linear(hidden, norm_weight, eps, *layers, update, is_gated=is_gated)
    linears = [_linear(module) for module in modules]

    def one_by_one(hidden: Tensor, update: Tensor | None) -> tuple[Sequence[Tensor], Tensor]:
        normed, hidden = add_rms_norm(hidden, norm_weight, eps, update)
        outputs = [linear(normed) for linear in linears]
        return [silu_mul(*outputs)] if is_gated else outputs, hidden

    return one_by_one


def _linear(module: nn.Module) -> Linear:
    """The layer without what a call of a module costs, where it is nothing but its weight and bias."""
    if not is_plain_linear(module):
        return module
    weight, bias = module.weight, module.bias
    return lambda states: functional.linear(states, weight, bias)


def _norm(norm: Any) -> tuple[Tensor, float]:
    """Weight [E] and epsilon of an RMS norm."""
    return norm.weight, norm.variance_epsilon


def _head_norms(attention: Any) -> tuple[Any, ...]:
    if not hasattr(attention, "q_norm"):
        return ()
    return attention.q_norm.weight, attention.k_norm.weight, attention.q_norm.variance_epsilon
