"""Log-probabilities of tokens under a causal language model, without logits of a whole sequence.

Legend: B rows, T tokens, N selected tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from relay_kernels import linear_log_probs
from relay_kernels.linear_log_probs.reference import LOG_ZERO
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relay_lightning.models.evaluating import evaluating
from relay_lightning.models.lm_head import has_linear_logits, model_logits
from relay_lightning.models.sharding import run_as_forward

CHUNK_ELEMENTS = 1 << 23
"""Logits of a chunk, where they are held whole: forward and backward pass have at most 8 fp32 copies, 256 MiB."""


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
    Only the hidden states in front of selected tokens pass the LM head, with whatever the model does behind it.
    Differentiable in the model's weights, also
    when nothing is selected (zero gradients), so that every rank of a distributed run takes part.
    """
    return run_as_forward(_token_log_probs, model, token_ids, mask, temperature)


@torch.no_grad()
def fixed_log_probs(model: nn.Module, token_ids: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """The log-probabilities [B, T] of `token_log_probs` in evaluation mode: without dropout, and without gradients."""
    with evaluating(model):
        return token_log_probs(model, token_ids, mask, temperature).log_probs


def _token_log_probs(model: nn.Module, token_ids: Tensor, mask: Tensor, temperature: float) -> TokenLogProbs:
    hidden = model.get_decoder()(input_ids=token_ids, use_cache=False).last_hidden_state  # [B, T, D]
    is_asked = mask[:, 1:]
    asked, targets = hidden[:, :-1][is_asked], token_ids[:, 1:][is_asked]  # [N, D], [N]
    if has_linear_logits(model):
        head = model.get_output_embeddings()
        log_probs, entropy = linear_log_probs(asked, head.weight, targets, bias=head.bias, temperature=temperature)
    else:
        log_probs, entropy = _from_whole_logits(model, asked, targets, temperature)
    return TokenLogProbs(_scatter(log_probs, mask), _scatter(entropy, mask))


def _from_whole_logits(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(log_probs [N], entropy [N]) of the logits that the model itself makes of `hidden`.

    Chunks of `CHUNK_ELEMENTS` logits, which are computed again in the backward pass, bound the memory.
    """
    size = max(1, CHUNK_ELEMENTS // model.config.vocab_size)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)  # one, and empty, where nothing is asked
    parts = [
        checkpoint(_logit_statistics, model, *chunk, temperature, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
    log_probs, entropy = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropy)


def _logit_statistics(model: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = model_logits(model, hidden)
    if len(targets) and int(targets.max()) >= logits.shape[-1]:
        raise ValueError(f"token ids must be below {logits.shape[-1]}, the width of the logits.")
    log_probs = (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(-1)
    # A logit of -inf has a probability of 0, which times its logarithm is 0.
    entropy = -(log_probs.exp() * log_probs.clamp(min=LOG_ZERO)).sum(-1)
    return log_probs.gather(1, targets[:, None])[:, 0], entropy


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """[N] values at the N selected places of a [B, T] tensor of zeros."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
