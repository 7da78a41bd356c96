"""Rows of a model's vocabulary that may not be drawn, such as those that pad it, and what they are worth.

Shapes: N rows of logits, S rows of the state, V vocabulary, L longest completion.
"""

from __future__ import annotations

import torch
from relay_kernels.relay_step import RelayStepState
from torch import Tensor
from torch.nn import functional


def normalize_over_all(
    state: RelayStepState, rows: Tensor | None, num_before: Tensor, logits: Tensor, num_drawable: int
) -> None:
    """Corrects `state.log_probs` of the tokens just drawn from the first `num_drawable` logits, in place.

    They become log-probabilities over all V logits, which is what a trainer computes. The sampling log-probabilities
    stay: nothing else could be drawn. num_before: [S] `state.num_tokens` before the step. logits: [N, V] of `rows`
    (None: all). No host sync.
    """
    rows = torch.arange(state.num_rows, device=logits.device) if rows is None else rows
    column = num_before[rows]
    temperature = state.temperature[rows]
    temperature = torch.where(temperature == 0, 1.0, temperature)  # greedy log-probs are those at temperature 1
    token, log_prob = state.tokens[rows, column], state.log_probs[rows, column]
    drawn = logits.gather(1, token.clamp(0, num_drawable - 1)[:, None])[:, 0].float() / temperature
    log_rest = (logits[:, num_drawable:].float() / temperature[:, None]).logsumexp(-1)
    log_drawable = drawn - log_prob
    is_written = state.num_tokens[rows] > column
    state.log_probs[rows, column] = torch.where(
        is_written, log_prob - functional.softplus(log_rest - log_drawable), log_prob
    )
