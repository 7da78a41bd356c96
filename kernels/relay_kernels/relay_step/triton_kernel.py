# ruff: noqa: N803, N806, PLR0912, PLR0915 - compile-time values are capitals in Triton, and a kernel is one function
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The kernel of the relay step in Triton: one launch that reads the logits once.

Shapes: N rows of logits, S rows of the state, V vocabulary, P splits of a row, K pieces of a row (16 a split, of 256
logits each).

A program scans one split of one row and leaves, per piece, its largest allowed logit and its sum of weights. The one
that arrives last at a row's counter goes on alone: it adds the pieces up, draws (first the piece, then the token in it,
both in vocabulary order) and moves the row's state on. Sums depend on the row alone, so a row draws the same token in
any batch.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from relay_kernels.relay_step.triton_threshold import (
    MASK_CLOSE,
    PIECE,
    PIECES,
    find_threshold,
    load_logits,
    weight_at_least,
    weights_of,
)

LOG2_E = tl.constexpr(math.log2(math.e))


@triton.jit
def _first_above(cumulative, weights, target, index):
    """The first index whose cumulative weight exceeds the target; the last one of any weight if rounding left none."""
    has_weight = weights > 0.0
    first = tl.min(tl.where(has_weight & (cumulative > target), index, 2147483647), axis=0)
    last = tl.max(tl.where(has_weight, index, 0), axis=0)
    return tl.where(first == 2147483647, last, first)


@triton.jit(do_not_specialize=["num_rows", "max_tokens", "num_states", "num_actions"])
def step_kernel(
    logits_ptr,
    rows_ptr,
    tokens_ptr,
    token_source_ptr,
    log_probs_ptr,
    sampling_log_probs_ptr,
    last_token_ptr,
    num_tokens_ptr,
    status_ptr,
    command_state_ptr,
    command_n_ptr,
    token_limit_ptr,
    span_limit_ptr,
    command_rule_ptr,
    ends_on_teacher_eos_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seed_ptr,
    prompt_id_ptr,
    sample_index_ptr,
    counter_ptr,
    next_state_ptr,
    is_complete_ptr,
    is_opening_ptr,
    digit_action_ptr,
    digit_scale_ptr,
    digit_value_ptr,
    eos_ptr,
    split_best_ptr,
    split_total_ptr,
    piece_best_ptr,
    piece_weight_ptr,
    kept_ptr,
    list_ptr,
    logits_stride,
    tokens_stride,
    vocab_size,
    num_splits,
    num_eos,
    num_rows,
    max_tokens,
    num_states,
    num_actions,
    WRITER: tl.constexpr,
    IS_STUDENT: tl.constexpr,
    STREAM: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    CUT: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    MAX_N: tl.constexpr,
    CALL: tl.constexpr,
    LENGTH: tl.constexpr,
    CALLED: tl.constexpr,
    STOP: tl.constexpr,
    DELIVERED: tl.constexpr,
    TEACHER_STOP: tl.constexpr,
    TEACHER_ENDED: tl.constexpr,
):
    """Scans one split of one row; the last program of a row finishes it."""
    item = (tl.program_id(0) // num_splits).to(tl.int64)  # the row of the logits
    row = tl.load(rows_ptr + item).to(tl.int64) if rows_ptr is not None else item  # the row of the state
    # A row whose values lead out of the state's tensors is left alone.
    is_row = (row >= 0) & (row < num_rows)
    if tl.load(status_ptr + row, mask=is_row, other=0) != WRITER:
        return
    position = tl.load(num_tokens_ptr + row)
    if (position < 0) | (position >= max_tokens):
        return
    command_state = tl.load(command_state_ptr + row) if HAS_TABLE else row
    if HAS_TABLE:  # noqa: SIM102 - decided when it is compiled
        if (command_state < 0) | (command_state >= num_states):
            return
    rule = tl.load(command_rule_ptr + row).to(tl.int32) if HAS_TABLE else 0
    is_masked = rule >= MASK_CLOSE
    temperature = tl.load(temperature_ptr + row)
    is_greedy = temperature == 0.0
    scale = LOG2_E / tl.where(is_greedy, 1.0, temperature)
    row_ptr = logits_ptr + item * logits_stride
    closing_ptr = is_complete_ptr + command_state * vocab_size if HAS_TABLE else is_complete_ptr
    opening_ptr = is_opening_ptr + command_state * vocab_size if HAS_TABLE else is_opening_ptr

    # The scan.
    split = tl.program_id(0) % num_splits
    local_piece = tl.arange(0, PIECES)
    index = split * (PIECES * PIECE) + local_piece[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    every, allowed = load_logits(row_ptr, closing_ptr, opening_ptr, rule, index, index < vocab_size, HAS_TABLE)
    piece_best = tl.max(allowed, axis=1)
    best = tl.max(piece_best, axis=0)
    weights = weights_of(allowed, best, scale)
    piece_weight = tl.sum(weights, axis=1)
    highest = best
    total = tl.sum(piece_weight, axis=0)
    if is_masked:
        highest = tl.max(tl.max(every, axis=1), axis=0)
        total = tl.sum(tl.sum(weights_of(every, highest, scale), axis=1), axis=0)
    num_pieces = num_splits * PIECES
    split_best_ptr += item * num_splits * 2
    split_total_ptr += item * num_splits
    piece_best_ptr += item * num_pieces
    piece_weight_ptr += item * num_pieces
    tl.store(split_best_ptr + 2 * split, best)
    tl.store(split_best_ptr + 2 * split + 1, highest)
    tl.store(split_total_ptr + split, total)
    tl.store(piece_best_ptr + split * PIECES + local_piece, piece_best)
    tl.store(piece_weight_ptr + split * PIECES + local_piece, piece_weight)
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr + item, 1, sem="acq_rel") != num_splits - 1:
        return
    tl.store(counter_ptr + item, 0)  # for the next launch

    # The sums of the row.
    part = tl.arange(0, BLOCK_P)
    split_best = tl.load(split_best_ptr + 2 * part, mask=part < num_splits, other=float("-inf"))
    split_highest = tl.load(split_best_ptr + 2 * part + 1, mask=part < num_splits, other=float("-inf"))
    split_total = tl.load(split_total_ptr + part, mask=part < num_splits, other=0.0)
    best = tl.max(split_best, axis=0)
    highest = tl.max(split_highest, axis=0)
    total = tl.sum(split_total * weights_of(split_highest, highest, scale), axis=0)
    BLOCK_K: tl.constexpr = BLOCK_P * PIECES
    piece = tl.arange(0, BLOCK_K)
    in_pieces = piece < num_pieces
    all_best = tl.load(piece_best_ptr + piece, mask=in_pieces, other=float("-inf"))

    threshold = tl.full([], float("-inf"), tl.float32)
    uniform = 0.0
    sampling_total = 1.0
    is_cut = False
    if CUT:
        top_k, top_p, min_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), tl.load(min_p_ptr + row)
        is_cut = ((top_k > 0) & (top_k < vocab_size)) | (top_p < 1.0) | (min_p > 0.0)
        list_ptr += item * num_pieces
        kept_ptr += item * num_pieces
    if is_greedy:
        threshold = best
        chosen = tl.min(tl.where(in_pieces & (all_best == best), piece, 2147483647), axis=0)
    else:
        prompt = tl.load(prompt_id_ptr + row)
        counter_0 = prompt.to(tl.uint32)
        counter_1 = tl.load(sample_index_ptr + row).to(tl.uint32)
        counter_3 = (STREAM + 4 * (prompt >> 32)).to(tl.uint32)
        word, _, _, _ = tl.philox(tl.load(seed_ptr + row), counter_0, counter_1, position.to(tl.uint32), counter_3)
        uniform = (word >> 8).to(tl.float32) * 5.9604644775390625e-08
        rescale = tl.load(split_best_ptr + 2 * (piece // PIECES), mask=in_pieces, other=float("-inf"))
        sums = tl.load(piece_weight_ptr + piece, mask=in_pieces, other=0.0) * weights_of(rescale, best, scale)
        if CUT:  # noqa: SIM102 - decided when it is compiled
            if is_cut:
                threshold = find_threshold(
                    top_k, top_p, min_p, row_ptr, closing_ptr, opening_ptr, rule, piece_best_ptr, list_ptr, kept_ptr,
                    best, scale, vocab_size, num_pieces, HAS_TABLE, BLOCK_K, SHIFT,
                )  # fmt: skip
                weight_at_least(
                    threshold, row_ptr, closing_ptr, opening_ptr, rule, piece_best_ptr, list_ptr, kept_ptr, best, scale,
                    vocab_size, num_pieces, HAS_TABLE, BLOCK_K, True,
                )  # fmt: skip
                sums = tl.load(kept_ptr + piece, mask=in_pieces & (all_best >= threshold), other=0.0)
        sampling_total = tl.sum(sums, axis=0)
        cumulative = tl.cumsum(sums, axis=0)
        target = uniform * sampling_total
        chosen = _first_above(cumulative, sums, target, piece)
        uniform = target - tl.sum(tl.where(piece < chosen, sums, 0.0), axis=0)  # what is left of it inside the piece

    offset = tl.arange(0, PIECE)
    entry = chosen * PIECE + offset
    _, logits = load_logits(row_ptr, closing_ptr, opening_ptr, rule, entry, entry < vocab_size, HAS_TABLE)
    if is_greedy:
        inside = tl.min(tl.where(logits == best, offset, PIECE - 1), axis=0)
    else:
        in_piece = tl.where(logits >= threshold, weights_of(logits, best, scale), 0.0)
        inside = _first_above(tl.cumsum(in_piece, axis=0), in_piece, uniform, offset)
    token = tl.minimum(chosen * PIECE + inside, vocab_size - 1)
    logit = tl.sum(tl.where(offset == token - chosen * PIECE, logits, 0.0), axis=0)
    log_prob = ((logit - highest) * scale - tl.log2(total)) / LOG2_E
    sampling_log_prob = log_prob
    if CUT or HAS_TABLE:
        share = ((logit - best) * scale - tl.log2(sampling_total)) / LOG2_E
        sampling_log_prob = tl.where(is_masked | is_cut, share, log_prob)
    sampling_log_prob = tl.where(is_greedy, 0.0, sampling_log_prob)

    # The state of the row.
    end = tl.arange(0, BLOCK_E)
    eos = tl.load(eos_ptr + end, mask=end < num_eos, other=-1)
    is_eos = tl.max((eos == token).to(tl.int32), axis=0) > 0
    length = position + 1
    is_full = length >= tl.load(token_limit_ptr + row)
    is_written = True
    if IS_STUDENT:
        status = tl.where(is_full, LENGTH, WRITER)
        if HAS_TABLE:
            cell = command_state * vocab_size + token
            action = tl.load(digit_action_ptr + cell).to(tl.int64)
            has_action = (action >= 0) & (action < num_actions)  # else it keeps n
            n = tl.load(command_n_ptr + row) * tl.load(digit_scale_ptr + action, mask=has_action, other=1)
            n += tl.load(digit_value_ptr + action, mask=has_action, other=0)
            is_call = (tl.load(is_complete_ptr + cell) != 0) & (rule == CALL) & (is_full == 0)
            status = tl.where(is_call, CALLED, status)
            tl.store(command_state_ptr + row, tl.load(next_state_ptr + cell).to(tl.int64))
            tl.store(command_n_ptr + row, tl.minimum(n, MAX_N))
        status = tl.where(is_eos, STOP, status)
    else:
        ends = tl.load(ends_on_teacher_eos_ptr + row) != 0
        status = tl.where(length >= tl.load(span_limit_ptr + row), DELIVERED, WRITER)
        status = tl.where(is_full, LENGTH, status)
        status = tl.where(is_eos, tl.where(ends, TEACHER_STOP, TEACHER_ENDED), status)
        is_written = ends | (is_eos == 0)
    tl.store(status_ptr + row, status.to(tl.uint8))
    cell = row * tokens_stride + position
    tl.store(num_tokens_ptr + row, length, mask=is_written)
    tl.store(last_token_ptr + row, token.to(tl.int64), mask=is_written)
    tl.store(tokens_ptr + cell, token.to(tl.int64), mask=is_written)
    tl.store(token_source_ptr + cell, tl.full([], WRITER, tl.uint8), mask=is_written)
    tl.store(log_probs_ptr + cell, log_prob, mask=is_written)
    tl.store(sampling_log_probs_ptr + cell, sampling_log_prob, mask=is_written)
