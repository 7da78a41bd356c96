"""Floating-point operations of a training pass: those that the mathematics needs, found by running the model's code.

Shapes: B rows, T tokens of a row, N tokens that are trained on, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from lightning.fabric.utilities.throughput import measure_flops

from relay_lightning.models.skeleton import ModelPlan, build_skeleton, fake_pass, with_fake_weights

FEW_TOKENS, MORE_TOKENS = 64, 128
"""Two lengths tell what a token and what a pair of tokens costs; longer ones would say the same."""


@dataclass(frozen=True, slots=True)
class PassFlops:
    """Of a forward and a backward pass; a product of a and b elements counts 2 a b."""

    per_token: float
    """In the decoder."""
    per_pair: float
    """Of two tokens of a row, in either order, for attention. Causal attention needs half of that, by convention
    counted whole."""
    per_loss_token: float
    """In the LM head."""

    def of(self, num_rows: int, num_tokens: int, num_loss_tokens: int) -> int:
        """Of B rows of T tokens with N that pass the head."""
        decoder = num_rows * (num_tokens * self.per_token + num_tokens**2 * self.per_pair)
        return round(decoder + num_loss_tokens * self.per_loss_token)


def pass_flops(plan: ModelPlan) -> PassFlops:
    """Of the student, adapters included. What gradient checkpointing computes twice counts once."""
    # Attention in plain products, which are all counted; quantised layers multiply as whole ones do.
    loading = replace(plan.loading, attention="eager", quantization=None)
    plan = replace(plan, loading=loading, gradient_checkpointing=False)
    few, more = (_decoder_flops(plan, num_tokens) for num_tokens in (FEW_TOKENS, MORE_TOKENS))
    per_pair = (more / MORE_TOKENS - few / FEW_TOKENS) / (MORE_TOKENS - FEW_TOKENS)
    head = int(plan.config.hidden_size) * int(plan.config.vocab_size)
    num_head_products = 3 if plan.lora is None else 2  # without a gradient of the head's weights
    return PassFlops(few / FEW_TOKENS - per_pair * FEW_TOKENS, per_pair, 2.0 * head * num_head_products)


def _decoder_flops(plan: ModelPlan, num_tokens: int) -> int:
    """Of one row through the decoder and back to the embedding."""
    skeleton = build_skeleton(plan)
    with fake_pass(plan, is_training=True):
        model = with_fake_weights(skeleton)
        embedding = model.get_input_embeddings().weight
        states = torch.zeros(1, num_tokens, embedding.shape[1], dtype=embedding.dtype)
        states.requires_grad_(embedding.requires_grad)
        return measure_flops(
            model,
            lambda: model.get_decoder()(inputs_embeds=states, use_cache=False).last_hidden_state,
            torch.Tensor.sum,
        )
