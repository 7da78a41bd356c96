"""One token per row from its logits and one uniform number: the definition, in plain PyTorch.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_tokens(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    truncates: bool = True,
    is_banned: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(token [B] int64, log_prob [B] fp32, sampling_log_prob [B] fp32).

    The token is the first one in vocabulary order whose cumulative probability exceeds `uniform` times the total, so
    a token of probability zero is never drawn. `log_prob` is its log-probability at the temperature (0 counts as 1)
    with nothing masked or cut; `sampling_log_prob` under the distribution that was sampled from (0.0 where the
    temperature is 0).

    logits: [B, V] float; uniform: [B] fp32 in [0, 1); the parameters: [B]. temperature 0 takes the most probable token,
    the first of equals. top_k (0: off), then top_p (1: off), then min_p (0: off) as in `keep_most_probable`; truncates:
    False where they are off in every row. is_banned: [B, V] bool, tokens that must not be drawn.
    """
    is_greedy = temperature == 0
    log_probs = (logits.float() / torch.where(is_greedy, 1.0, temperature)[:, None]).log_softmax(-1)
    allowed, is_whole, shift = log_probs, torch.ones_like(is_greedy), torch.zeros_like(temperature)
    if is_banned is not None:
        allowed, is_whole = log_probs.masked_fill(is_banned, -torch.inf), ~is_banned.any(-1)
        # Relative to the best token that is left: what is banned may hold all but nothing of the probability.
        best = allowed.amax(-1)
        shift = best.masked_fill(is_whole | best.isinf(), 0.0)
        allowed = allowed - shift[:, None]
    probs = allowed.exp()
    if truncates:
        probs = keep_most_probable(probs, top_k, top_p, min_p)
        is_whole = is_whole & ~(((top_k > 0) & (top_k < logits.shape[1])) | (top_p < 1) | (min_p > 0))
    token = torch.where(is_greedy, allowed.argmax(-1), draw(probs, uniform))
    log_prob = log_probs.gather(-1, token[:, None])[:, 0]
    sampling_log_prob = torch.where(is_whole, log_prob, (log_prob - shift) - probs.sum(-1).log())
    return token, log_prob, sampling_log_prob.masked_fill(is_greedy, 0.0)


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """[B] int64: the first token whose cumulative probability exceeds uniform * total. probs: [B, V], of any sum.

    Where there is no such token (NaN) it is the last one, so that the log-probability shows the NaN.
    """
    cumulative = probs.cumsum(-1)
    token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return token.clamp(max=probs.shape[-1] - 1)


def keep_most_probable(probs: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """[B, V]: probs with the tokens that top-k, top-p and min-p cut away set to zero; not renormalised.

    top-k keeps the tokens at least as probable as the k-th (ties stay together; 0 or k >= V keeps all). top-p keeps,
    of what top-k left and relative to its mass, each token with less than top_p of the mass strictly above it. min-p
    keeps the tokens at least min_p times as probable as the most probable one. The most probable token always stays.
    Parameters: [B], or [1] for all rows.
    """
    top_k, top_p, min_p = top_k[:, None], top_p[:, None], min_p[:, None]
    ordered = probs.sort(-1, descending=True).values
    rank = torch.arange(probs.shape[-1], device=probs.device)
    k = torch.where(top_k > 0, top_k, probs.shape[-1]).clamp(max=probs.shape[-1])
    kth = ordered.gather(-1, (k - 1).expand(probs.shape[0], 1))
    ordered = ordered.masked_fill(ordered < kth, 0.0)
    cumulative = ordered.cumsum(-1)
    # Tokens of equal probability share the mass above the first of them, so that a tie is never split.
    first_equal = torch.searchsorted(-ordered, -ordered)
    above = torch.where(first_equal > 0, cumulative.gather(-1, (first_equal - 1).clamp(min=0)), 0.0)
    in_nucleus = (above < top_p * cumulative[:, -1:]) | (top_p >= 1) | (rank == 0)
    in_nucleus &= ordered >= min_p * ordered[:, :1]
    in_nucleus &= ordered >= kth
    threshold = ordered.masked_fill(~in_nucleus, torch.inf).amin(-1, keepdim=True)
    return probs.masked_fill(probs < threshold, 0.0)
