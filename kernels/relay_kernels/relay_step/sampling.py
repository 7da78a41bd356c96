"""One token per row from its logits and one uniform number: the definition, in plain PyTorch.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_tokens(
    logits: Tensor,
    uniform: Tensor | None,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    is_banned: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(token [B] int64, log_prob [B] fp32, sampling_log_prob [B] fp32).

    The token is the first one in vocabulary order whose cumulative probability exceeds `uniform` times the total, so
    a token of probability zero is never drawn. `log_prob` is its log-probability at the temperature (0 counts as 1)
    with nothing masked or cut; `sampling_log_prob` under the distribution that was sampled from (0.0 where the
    temperature is 0).

    logits: [B, V] float; uniform: [B] fp32 in [0, 1), None only when the temperature is the number 0. Each parameter
    is one number for all rows or a [B] tensor. temperature 0 takes the most probable token, the first of equals.
    top_k (0: off), then top_p (1: off), then min_p (0: off) as in `keep_most_probable`. is_banned: [B, V] bool,
    tokens that must not be drawn.
    """
    logits = logits.float()
    if isinstance(temperature, Tensor):
        greedy = temperature == 0
        scaled = logits / torch.where(greedy, 1.0, temperature)[:, None]
    else:
        greedy = None
        scaled = logits if temperature in (0, 1) else logits / temperature
    log_probs = scaled.log_softmax(-1)
    allowed = log_probs if is_banned is None else log_probs.masked_fill(is_banned, -torch.inf)
    if greedy is None and temperature == 0:
        token = allowed.argmax(-1)
        log_prob = _pick(log_probs, token)
        return token, log_prob, torch.zeros_like(log_prob)
    assert uniform is not None
    probs, is_whole = allowed.exp(), is_banned is None
    if _is_on(top_k, 0) or _is_on(top_p, 1.0) or _is_on(min_p, 0.0):
        probs, is_whole = keep_most_probable(probs, top_k=top_k, top_p=top_p, min_p=min_p), False
    token = draw(probs, uniform)
    log_prob = _pick(log_probs, token)
    sampling_log_prob = log_prob if is_whole else log_prob - probs.sum(-1).log()
    if greedy is not None:
        best = allowed.argmax(-1)
        token = torch.where(greedy, best, token)
        log_prob = torch.where(greedy, _pick(log_probs, best), log_prob)
        sampling_log_prob = sampling_log_prob.masked_fill(greedy, 0.0)
    return token, log_prob, sampling_log_prob


def draw(probs: Tensor, uniform: Tensor) -> Tensor:
    """[B] int64: the first token whose cumulative probability exceeds uniform * total. probs: [B, V], of any sum.

    Where there is no such token (NaN) it is the last one, so that the log-probability shows the NaN.
    """
    cumulative = probs.cumsum(-1)
    token = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return token.clamp(max=probs.shape[-1] - 1)


def keep_most_probable(
    probs: Tensor, *, top_k: int | Tensor = 0, top_p: float | Tensor = 1.0, min_p: float | Tensor = 0.0
) -> Tensor:
    """[B, V]: probs with the tokens that top-k, top-p and min-p cut away set to zero; not renormalised.

    top-k keeps the tokens at least as probable as the k-th (ties stay together; 0 or k >= V keeps all). top-p keeps,
    of what top-k left and relative to its mass, each token with less than top_p of the mass strictly above it. min-p
    keeps the tokens at least min_p times as probable as the most probable one. The most probable token always stays.
    Parameters: one number or a [B] tensor.
    """
    top_k, top_p, min_p = (_column(value, probs) for value in (top_k, top_p, min_p))
    ordered = probs.sort(-1, descending=True).values
    rank = torch.arange(probs.shape[-1], device=probs.device)
    k = torch.where(top_k > 0, top_k, probs.shape[-1]).clamp(max=probs.shape[-1]).long()
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


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    """A parameter as a [B, 1] or [1, 1] tensor, without a copy from the host."""
    return value.reshape(-1, 1) if isinstance(value, Tensor) else torch.full((1, 1), value, device=like.device)


def _is_on(value: float | Tensor, off: float) -> bool:
    return isinstance(value, Tensor) or value != off


def _pick(values: Tensor, token: Tensor) -> Tensor:
    return values.gather(-1, token[:, None])[:, 0]
