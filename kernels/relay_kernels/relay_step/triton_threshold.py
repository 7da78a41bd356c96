# ruff: noqa: N803, PLR0912 - compile-time arguments are capitals in Triton, and a kernel is one function
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Which logits of a row survive top-k, top-p and min-p: one threshold, found in Triton without sorting.

V vocabulary, K pieces of a row, of 256 logits each. The threshold is found by bisection over the logits'
order-preserving integer keys; each probe reads only the pieces whose largest logit reaches it. Weights are
2^((logit - best) * scale), scale = log2(e) / temperature, best = the row's largest allowed logit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from relay_kernels.relay_step.state import CommandRule

MASK_CLOSE = tl.constexpr(int(CommandRule.MASK_CLOSE))
MASK_OPEN = tl.constexpr(int(CommandRule.MASK_OPEN))
PIECE = tl.constexpr(256)
"""Logits of a piece: 512 bytes in 16 bit, so that reading single pieces wastes no memory sector."""
PIECES = tl.constexpr(16)
"""Pieces of a split; also the pieces that a probe of the threshold reads at once."""


@triton.jit
def _key(value, SHIFT: tl.constexpr):
    """The integer of an fp32 logit whose order is that of the logits."""
    bits = value.to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> SHIFT


@triton.jit
def _logit(key, SHIFT: tl.constexpr):
    """The fp32 logit of a key."""
    low: tl.constexpr = (1 << SHIFT) - 1
    full = (key << SHIFT) | tl.where(key < 0, low, 0)
    return (full ^ ((full >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def load_logits(logits_ptr, closing_ptr, opening_ptr, rule, index, in_row, MASK: tl.constexpr):
    """Logits of a row as fp32, and the same with -inf where its command rule bans a token."""
    logits = tl.load(logits_ptr + index, mask=in_row, other=float("-inf")).to(tl.float32)
    if MASK:
        closes = tl.load(closing_ptr + index, mask=in_row & (rule >= MASK_CLOSE), other=0)
        opens = tl.load(opening_ptr + index, mask=in_row & (rule >= MASK_OPEN), other=0)
        return logits, tl.where((closes | opens) != 0, float("-inf"), logits)
    return logits, logits


@triton.jit
def weights_of(logits, best, scale):
    """2^((logit - best) * scale), 0 for a logit of -inf even if `best` is -inf too."""
    return tl.where(logits == float("-inf"), 0.0, tl.exp2((logits - best) * scale))


@triton.jit
def weight_at_least(
    threshold,
    logits_ptr,
    closing_ptr,
    opening_ptr,
    rule,
    piece_best_ptr,
    list_ptr,
    kept_ptr,
    best,
    scale,
    vocab_size,
    num_pieces,
    MASK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STORE: tl.constexpr,
):
    """How many logits reach the threshold, and their weight; with STORE, also the weight in each piece that has any."""
    piece = tl.arange(0, BLOCK_K)
    piece_best = tl.load(piece_best_ptr + piece, mask=piece < num_pieces, other=float("-inf"))
    is_selected = (piece_best >= threshold) & (piece < num_pieces)
    place = tl.cumsum(is_selected.to(tl.int32), axis=0) - 1
    num_selected = tl.sum(is_selected.to(tl.int32), axis=0)
    tl.debug_barrier()  # the list of the probe before has been read
    tl.store(list_ptr + place, piece, mask=is_selected)
    tl.debug_barrier()
    count = 0
    weight = 0.0
    for first in range(0, num_selected, PIECES):
        entry = first + tl.arange(0, PIECES)
        is_entry = entry < num_selected
        chosen = tl.load(list_ptr + entry, mask=is_entry, other=0)
        index = chosen[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
        in_row = (index < vocab_size) & is_entry[:, None]
        _, logits = load_logits(logits_ptr, closing_ptr, opening_ptr, rule, index, in_row, MASK)
        reaches = in_row & (logits >= threshold)
        weights = tl.where(reaches, weights_of(logits, best, scale), 0.0)
        count += tl.sum(tl.sum(reaches.to(tl.int32), axis=1), axis=0)
        of_piece = tl.sum(weights, axis=1)
        weight += tl.sum(of_piece, axis=0)
        if STORE:
            tl.store(kept_ptr + chosen, of_piece, mask=is_entry)
    if STORE:
        tl.debug_barrier()
    return count, weight


@triton.jit
def find_threshold(
    top_k,
    top_p,
    min_p,
    logits_ptr,
    closing_ptr,
    opening_ptr,
    rule,
    piece_best_ptr,
    list_ptr,
    kept_ptr,
    best,
    scale,
    vocab_size,
    num_pieces,
    MASK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """The logit that a token must reach to survive top-k, then top-p of what is left, then min-p."""
    best_key = _key(best, SHIFT)
    lowest = tl.full([], float("-inf"), tl.float32)
    top_k = tl.where(top_k > 0, tl.minimum(top_k, vocab_size), vocab_size).to(tl.int32)
    low = _key(lowest, SHIFT)
    if top_k < vocab_size:
        piece = tl.arange(0, BLOCK_K)
        piece_best = tl.load(piece_best_ptr + piece, mask=piece < num_pieces, other=float("-inf"))
        high = best_key + 1
        # The k-th best piece bounds the k-th best logit from below, without reading a logit.
        if top_k <= num_pieces:
            while low + 1 < high:
                middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
                if tl.sum((piece_best >= _logit(middle, SHIFT)).to(tl.int32), axis=0) >= top_k:
                    low = middle
                else:
                    high = middle
            high = best_key + 1
        # Largest key that at least k logits reach.
        while low + 1 < high:
            middle = (low & high) + ((low ^ high) >> 1)
            count, _ = weight_at_least(
                _logit(middle, SHIFT), logits_ptr, closing_ptr, opening_ptr, rule, piece_best_ptr, list_ptr, kept_ptr,
                best, scale, vocab_size, num_pieces, MASK, BLOCK_K, False,
            )  # fmt: skip
            if count >= top_k:
                low = middle
            else:
                high = middle
    key = low
    if top_p < 1.0:
        _, total = weight_at_least(
            _logit(low, SHIFT), logits_ptr, closing_ptr, opening_ptr, rule, piece_best_ptr, list_ptr, kept_ptr, best,
            scale, vocab_size, num_pieces, MASK, BLOCK_K, False,
        )  # fmt: skip
        # Smallest key above which lies less than top_p of the weight.
        low = low - 1
        high = best_key
        while low + 1 < high:
            middle = (low & high) + ((low ^ high) >> 1)
            _, above = weight_at_least(
                _logit(middle + 1, SHIFT), logits_ptr, closing_ptr, opening_ptr, rule, piece_best_ptr, list_ptr,
                kept_ptr, best, scale, vocab_size, num_pieces, MASK, BLOCK_K, False,
            )  # fmt: skip
            if above < top_p * total:
                high = middle
            else:
                low = middle
        key = high
    threshold = _logit(key, SHIFT)
    if min_p > 0.0:
        threshold = tl.maximum(threshold, best + tl.log2(min_p) / scale)
    return tl.minimum(threshold, best)
