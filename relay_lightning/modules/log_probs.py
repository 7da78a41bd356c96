"""Log-probabilities of tokens under a causal language model, without logits of a whole sequence.

Legend: B rows, T tokens, N selected tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from relay_kernels import linear_log_probs
from torch import Tensor, nn

from relay_lightning.models.sharding import run_as_forward


class TokenLogProbs(NamedTuple):
    """What a model says of given tokens; 0 where it was not asked."""

    log_probs: Tensor
    """[B, T] fp32: natural log-probability of token t given those before it."""
    entropy: Tensor
    """[B, T] fp32: entropy in nats of the distribution that token t came from."""


def token_log_probs(model: nn.Module, token_ids: Tensor, mask: Tensor, temperature: float = 1.0) -> TokenLogProbs:
    """Log-probabilities and entropies of the tokens that `mask` selects.

    token_ids: [B, T] int64, right-padded. mask: [B, T] bool; its first column must be False, for the first token
    follows nothing. No attention mask is needed: padding stands on the right, where a causal model does not look.
    Only the hidden states in front of selected tokens pass the LM head. Differentiable in the model's weights, also
    when nothing is selected (zero gradients), so that every rank of a distributed run takes part.
    """
    return run_as_forward(_token_log_probs, model, token_ids, mask, temperature)


def _token_log_probs(model: nn.Module, token_ids: Tensor, mask: Tensor, temperature: float) -> TokenLogProbs:
    hidden = model.get_decoder()(input_ids=token_ids, use_cache=False).last_hidden_state  # [B, T, D]
    is_asked = mask[:, 1:]
    head = model.get_output_embeddings()
    log_probs, entropy = linear_log_probs(
        hidden[:, :-1][is_asked],  # [N, D]
        head.weight,
        token_ids[:, 1:][is_asked],
        bias=head.bias,
        temperature=temperature,
    )
    return TokenLogProbs(_scatter(log_probs, mask), _scatter(entropy, mask))


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """[N] values at the N selected places of a [B, T] tensor of zeros."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
