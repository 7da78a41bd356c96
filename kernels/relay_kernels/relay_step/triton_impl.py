# ruff: noqa: N803, N806, PLR0912, PLR0915 - compile-time values are capitals in Triton, and a kernel is one function
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""The relay step in Triton: one launch that reads the logits once.

Shapes: N rows of logits, S slots, V vocabulary, P splits of a row, K pieces of a row (16 a split, of 256 logits each).

A program scans one split of one row and leaves, per piece, its largest allowed logit and its sum of weights. The one
that arrives last at a row's counter goes on alone: it adds the pieces up, draws (first the piece, then the token in it,
both in vocabulary order) and moves the row's state on. Top-k, top-p and min-p are one threshold on the logits, found
without sorting by bisection over their order-preserving integer keys; each probe reads only the pieces whose largest
logit reaches it. Sums depend on the row alone, so a row draws the same token in any batch.

Weights are 2^((logit - best) * scale), scale = log2(e) / temperature, best = the row's largest allowed logit.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from relay_kernels.backends import on_device
from relay_kernels.relay_step.commands import MAX_REQUEST, CommandTable
from relay_kernels.relay_step.philox import RandomStream
from relay_kernels.relay_step.state import RelayStepState, RowStatus, Writer

PIECE = tl.constexpr(256)
"""Logits of a piece: 512 bytes in 16 bit, so that reading single pieces wastes no memory sector."""
PIECES = tl.constexpr(16)
"""Pieces of a split; also the pieces that a probe of the threshold reads at once."""
LOG2_E = tl.constexpr(math.log2(math.e))
MASK_64 = (1 << 64) - 1
KEY_SHIFT = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Low bits of the fp32 form of a logit that are always zero: 16-bit logits need fewer probes."""


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
def _load(logits_ptr, banned_ptr, is_masking, index, in_row, MASK: tl.constexpr):
    """Logits of a row as fp32, and the same with -inf where a token is banned."""
    logits = tl.load(logits_ptr + index, mask=in_row, other=float("-inf")).to(tl.float32)
    if MASK:
        is_banned = tl.load(banned_ptr + index, mask=in_row & is_masking, other=0) != 0
        return logits, tl.where(is_banned, float("-inf"), logits)
    return logits, logits


@triton.jit
def _weights(logits, best, scale):
    """2^((logit - best) * scale), 0 for a logit of -inf even if `best` is -inf too."""
    return tl.where(logits == float("-inf"), 0.0, tl.exp2((logits - best) * scale))


@triton.jit
def _at_least(
    threshold,
    logits_ptr,
    banned_ptr,
    is_masking,
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
        _, logits = _load(logits_ptr, banned_ptr, is_masking, index, in_row, MASK)
        reaches = in_row & (logits >= threshold)
        weights = tl.where(reaches, _weights(logits, best, scale), 0.0)
        count += tl.sum(tl.sum(reaches.to(tl.int32), axis=1), axis=0)
        of_piece = tl.sum(weights, axis=1)
        weight += tl.sum(of_piece, axis=0)
        if STORE:
            tl.store(kept_ptr + chosen, of_piece, mask=is_entry)
    if STORE:
        tl.debug_barrier()
    return count, weight


@triton.jit
def _find_threshold(
    top_k,
    top_p,
    min_p,
    logits_ptr,
    banned_ptr,
    is_masking,
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
            count, _ = _at_least(
                _logit(middle, SHIFT), logits_ptr, banned_ptr, is_masking, piece_best_ptr, list_ptr, kept_ptr, best,
                scale, vocab_size, num_pieces, MASK, BLOCK_K, False,
            )  # fmt: skip
            if count >= top_k:
                low = middle
            else:
                high = middle
    key = low
    if top_p < 1.0:
        _, total = _at_least(
            _logit(low, SHIFT), logits_ptr, banned_ptr, is_masking, piece_best_ptr, list_ptr, kept_ptr, best,
            scale, vocab_size, num_pieces, MASK, BLOCK_K, False,
        )  # fmt: skip
        # Smallest key above which lies less than top_p of the weight.
        low = low - 1
        high = best_key
        while low + 1 < high:
            middle = (low & high) + ((low ^ high) >> 1)
            _, above = _at_least(
                _logit(middle + 1, SHIFT), logits_ptr, banned_ptr, is_masking, piece_best_ptr, list_ptr, kept_ptr, best,
                scale, vocab_size, num_pieces, MASK, BLOCK_K, False,
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


@triton.jit
def _first_above(cumulative, weights, target, index):
    """The first index whose cumulative weight exceeds the target; the last one of any weight if rounding left none."""
    has_weight = weights > 0.0
    first = tl.min(tl.where(has_weight & (cumulative > target), index, 2147483647), axis=0)
    last = tl.max(tl.where(has_weight, index, 0), axis=0)
    return tl.where(first == 2147483647, last, first)


@triton.jit
def _number(pointer, value, row):
    """A sampling parameter: of this row, or of all rows."""
    if pointer is None:  # noqa: SIM108 - the interpreter leaves a plain number in a conditional expression
        number = value
    else:
        number = tl.load(pointer + row)
    return number


@triton.jit(do_not_specialize=["seed", "top_k"])
def _step_kernel(
    logits_ptr,
    slots_ptr,
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
    can_call_ptr,
    ends_on_teacher_eos_ptr,
    prompt_id_ptr,
    sample_index_ptr,
    next_state_ptr,
    is_complete_ptr,
    digit_action_ptr,
    digit_scale_ptr,
    digit_value_ptr,
    eos_ptr,
    uniforms_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    counter_ptr,
    split_best_ptr,
    split_total_ptr,
    piece_best_ptr,
    piece_weight_ptr,
    kept_ptr,
    list_ptr,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    logits_stride,
    tokens_stride,
    uniforms_stride,
    uniforms_length,
    vocab_size,
    num_splits,
    num_eos,
    WRITER: tl.constexpr,
    IS_STUDENT: tl.constexpr,
    STREAM: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    MASK: tl.constexpr,
    CUT: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_E: tl.constexpr,
    MAX_N: tl.constexpr,
    LENGTH: tl.constexpr,
    CALLED: tl.constexpr,
    STOP: tl.constexpr,
    DELIVERED: tl.constexpr,
    TEACHER_STOP: tl.constexpr,
    TEACHER_ENDED: tl.constexpr,
):
    """Scans one split of one row; the last program of a row finishes it."""
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots_ptr + row) if slots_ptr is not None else row
    if tl.load(status_ptr + slot) != WRITER:
        return
    command_state = tl.load(command_state_ptr + slot) if HAS_TABLE else row
    can_call = tl.load(can_call_ptr + slot) != 0 if HAS_TABLE else False
    temperature = _number(temperature_ptr, temperature, row).to(tl.float32)
    is_greedy = temperature == 0.0
    scale = LOG2_E / tl.where(is_greedy, 1.0, temperature)
    is_masking = can_call == 0
    row_ptr = logits_ptr + row * logits_stride
    banned_ptr = is_complete_ptr + command_state * vocab_size if MASK else is_complete_ptr

    # The scan.
    split = tl.program_id(0)
    local_piece = tl.arange(0, PIECES)
    index = split * (PIECES * PIECE) + local_piece[:, None] * PIECE + tl.arange(0, PIECE)[None, :]
    every, allowed = _load(row_ptr, banned_ptr, is_masking, index, index < vocab_size, MASK)
    piece_best = tl.max(allowed, axis=1)
    best = tl.max(piece_best, axis=0)
    weights = _weights(allowed, best, scale)
    piece_weight = tl.sum(weights, axis=1)
    highest = best
    total = tl.sum(piece_weight, axis=0)
    if MASK:
        highest = tl.max(tl.max(every, axis=1), axis=0)
        total = tl.sum(tl.sum(_weights(every, highest, scale), axis=1), axis=0)
    num_pieces = num_splits * PIECES
    split_best_ptr += row * num_splits * 2
    split_total_ptr += row * num_splits
    piece_best_ptr += row * num_pieces
    piece_weight_ptr += row * num_pieces
    tl.store(split_best_ptr + 2 * split, best)
    tl.store(split_best_ptr + 2 * split + 1, highest)
    tl.store(split_total_ptr + split, total)
    tl.store(piece_best_ptr + split * PIECES + local_piece, piece_best)
    tl.store(piece_weight_ptr + split * PIECES + local_piece, piece_weight)
    tl.debug_barrier()
    if tl.atomic_add(counter_ptr + row, 1, sem="acq_rel") != num_splits - 1:
        return
    tl.store(counter_ptr + row, 0)  # for the next launch

    # The sums of the row.
    part = tl.arange(0, BLOCK_P)
    split_best = tl.load(split_best_ptr + 2 * part, mask=part < num_splits, other=float("-inf"))
    split_highest = tl.load(split_best_ptr + 2 * part + 1, mask=part < num_splits, other=float("-inf"))
    split_total = tl.load(split_total_ptr + part, mask=part < num_splits, other=0.0)
    best = tl.max(split_best, axis=0)
    highest = tl.max(split_highest, axis=0)
    total = tl.sum(split_total * _weights(split_highest, highest, scale), axis=0)
    BLOCK_K: tl.constexpr = BLOCK_P * PIECES
    piece = tl.arange(0, BLOCK_K)
    in_pieces = piece < num_pieces
    all_best = tl.load(piece_best_ptr + piece, mask=in_pieces, other=float("-inf"))
    position = tl.load(num_tokens_ptr + slot)

    threshold = tl.full([], float("-inf"), tl.float32)
    uniform = 0.0
    sampling_total = 1.0
    if is_greedy:
        threshold = best
        chosen = tl.min(tl.where(in_pieces & (all_best == best), piece, 2147483647), axis=0)
    else:
        if uniforms_ptr is not None:
            column = tl.minimum(position, uniforms_length - 1)
            uniform = tl.load(uniforms_ptr + slot * uniforms_stride + column)
        else:
            prompt = tl.load(prompt_id_ptr + slot)
            counter_0 = prompt.to(tl.uint32)
            counter_1 = tl.load(sample_index_ptr + slot).to(tl.uint32)
            counter_3 = (STREAM + 4 * (prompt >> 32)).to(tl.uint32)
            word, _, _, _ = tl.philox(seed, counter_0, counter_1, position.to(tl.uint32), counter_3)
            uniform = (word >> 8).to(tl.float32) * 5.9604644775390625e-08
        if CUT:
            list_ptr += row * num_pieces
            kept_ptr += row * num_pieces
            threshold = _find_threshold(
                _number(top_k_ptr, top_k, row), _number(top_p_ptr, top_p, row).to(tl.float32),
                _number(min_p_ptr, min_p, row).to(tl.float32), row_ptr, banned_ptr, is_masking, piece_best_ptr,
                list_ptr, kept_ptr, best, scale, vocab_size, num_pieces, MASK, BLOCK_K, SHIFT,
            )  # fmt: skip
            _at_least(
                threshold, row_ptr, banned_ptr, is_masking, piece_best_ptr, list_ptr, kept_ptr, best, scale, vocab_size,
                num_pieces, MASK, BLOCK_K, True,
            )  # fmt: skip
            sums = tl.load(kept_ptr + piece, mask=in_pieces & (all_best >= threshold), other=0.0)
        else:
            rescale = tl.load(split_best_ptr + 2 * (piece // PIECES), mask=in_pieces, other=float("-inf"))
            sums = tl.load(piece_weight_ptr + piece, mask=in_pieces, other=0.0) * _weights(rescale, best, scale)
        sampling_total = tl.sum(sums, axis=0)
        cumulative = tl.cumsum(sums, axis=0)
        target = uniform * sampling_total
        chosen = _first_above(cumulative, sums, target, piece)
        uniform = target - tl.sum(tl.where(piece < chosen, sums, 0.0), axis=0)  # what is left of it inside the piece

    offset = tl.arange(0, PIECE)
    entry = chosen * PIECE + offset
    _, logits = _load(row_ptr, banned_ptr, is_masking, entry, entry < vocab_size, MASK)
    if is_greedy:
        inside = tl.min(tl.where(logits == best, offset, PIECE - 1), axis=0)
    else:
        in_piece = tl.where(logits >= threshold, _weights(logits, best, scale), 0.0)
        inside = _first_above(tl.cumsum(in_piece, axis=0), in_piece, uniform, offset)
    token = tl.minimum(chosen * PIECE + inside, vocab_size - 1)
    logit = tl.sum(tl.where(offset == token - chosen * PIECE, logits, 0.0), axis=0)
    log_prob = ((logit - highest) * scale - tl.log2(total)) / LOG2_E
    sampling_log_prob = log_prob
    if CUT or MASK:
        sampling_log_prob = ((logit - best) * scale - tl.log2(sampling_total)) / LOG2_E
    sampling_log_prob = tl.where(is_greedy, 0.0, sampling_log_prob)

    # The state of the row.
    end = tl.arange(0, BLOCK_E)
    eos = tl.load(eos_ptr + end, mask=end < num_eos, other=-1)
    is_eos = tl.max((eos == token).to(tl.int32), axis=0) > 0
    length = position + 1
    is_full = length >= tl.load(token_limit_ptr + slot)
    is_written = True
    if IS_STUDENT:
        status = tl.where(is_full, LENGTH, WRITER)
        if HAS_TABLE:
            cell = command_state * vocab_size + token
            action = tl.load(digit_action_ptr + cell).to(tl.int64)
            n = tl.load(command_n_ptr + slot) * tl.load(digit_scale_ptr + action) + tl.load(digit_value_ptr + action)
            is_call = (tl.load(is_complete_ptr + cell) != 0) & can_call & (is_full == 0)
            status = tl.where(is_call, CALLED, status)
            tl.store(command_state_ptr + slot, tl.load(next_state_ptr + cell).to(tl.int64))
            tl.store(command_n_ptr + slot, tl.minimum(n, MAX_N))
        status = tl.where(is_eos, STOP, status)
    else:
        ends = tl.load(ends_on_teacher_eos_ptr + slot) != 0
        status = tl.where(length >= tl.load(span_limit_ptr + slot), DELIVERED, WRITER)
        status = tl.where(is_full, LENGTH, status)
        status = tl.where(is_eos, tl.where(ends, TEACHER_STOP, TEACHER_ENDED), status)
        is_written = ends | (is_eos == 0)
    tl.store(status_ptr + slot, status.to(tl.uint8))
    cell = slot * tokens_stride + position
    tl.store(num_tokens_ptr + slot, length, mask=is_written)
    tl.store(last_token_ptr + slot, token.to(tl.int64), mask=is_written)
    tl.store(tokens_ptr + cell, token.to(tl.int64), mask=is_written)
    tl.store(token_source_ptr + cell, tl.full([], WRITER, tl.uint8), mask=is_written)
    tl.store(log_probs_ptr + cell, log_prob, mask=is_written)
    tl.store(sampling_log_probs_ptr + cell, sampling_log_prob, mask=is_written)


_COUNTERS: dict[tuple[torch.device, int], Tensor] = {}
"""Arrivals at each row, by device and stream: zero between launches, as the last program of a row resets its own."""


def _counters(num_rows: int, device: torch.device) -> Tensor:
    """At least `num_rows` counters that no launch on another stream uses."""
    key = (device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
    if key not in _COUNTERS or _COUNTERS[key].shape[0] < num_rows:
        _COUNTERS[key] = torch.zeros(max(num_rows, 1024), dtype=torch.int32, device=device)
    return _COUNTERS[key]


def relay_step_triton(
    logits: Tensor,
    state: RelayStepState,
    slots: Tensor | None,
    writer: Writer,
    table: CommandTable | None,
    eos_token_ids: Tensor,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
    mask_commands: bool,
    seed: int,
    uniforms: Tensor | None,
) -> None:
    """`relay_step`, in place, in one launch."""
    num_rows, vocab_size = logits.shape
    if num_rows == 0:
        return
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    device = logits.device
    num_splits = triton.cdiv(vocab_size, PIECE.value * PIECES.value)
    is_cut = any(isinstance(value, Tensor) or value != off for value, off in ((top_k, 0), (top_p, 1.0), (min_p, 0.0)))
    split_sums = torch.empty((3, num_rows, num_splits), dtype=torch.float32, device=device)
    piece_sums = torch.empty((3, num_rows, num_splits * PIECES.value), dtype=torch.float32, device=device)
    piece_list = torch.empty(
        (num_rows, num_splits * PIECES.value) if is_cut else (0,), dtype=torch.int32, device=device
    )
    parameters = (temperature, top_k, top_p, min_p)
    commands = [None] * 5 if table is None else [
        table.next_state, table.is_complete.view(torch.uint8), table.digit_action, table.digit_scale, table.digit_value
    ]  # fmt: skip
    with on_device(logits):
        _step_kernel[(num_splits, num_rows)](
            logits,
            slots,
            state.tokens,
            state.token_source,
            state.log_probs,
            state.sampling_log_probs,
            state.last_token,
            state.num_tokens,
            state.status,
            state.command_state,
            state.command_n,
            state.token_limit,
            state.span_limit,
            state.can_call.view(torch.uint8),
            state.ends_on_teacher_eos.view(torch.uint8),
            state.prompt_id,
            state.sample_index,
            *commands,
            eos_token_ids,
            uniforms,
            *(value if isinstance(value, Tensor) else None for value in parameters),
            _counters(num_rows, device),
            split_sums,
            split_sums[2],
            *piece_sums,
            piece_list,
            *(
                off if isinstance(value, Tensor) else value
                for value, off in zip(parameters, (1.0, 0, 1.0, 0.0), strict=True)
            ),
            seed & MASK_64,
            logits.stride(0),
            state.tokens.stride(0),
            0 if uniforms is None else uniforms.stride(0),
            0 if uniforms is None else uniforms.shape[1],
            vocab_size,
            num_splits,
            eos_token_ids.shape[0],
            WRITER=int(writer),
            IS_STUDENT=writer == Writer.STUDENT,
            STREAM=int(RandomStream.STUDENT if writer == Writer.STUDENT else RandomStream.TEACHER),
            HAS_TABLE=table is not None,
            MASK=mask_commands and table is not None,
            CUT=is_cut,
            SHIFT=KEY_SHIFT[logits.dtype],
            BLOCK_P=triton.next_power_of_2(num_splits),
            BLOCK_E=triton.next_power_of_2(max(eos_token_ids.shape[0], 1)),
            MAX_N=MAX_REQUEST,
            LENGTH=int(RowStatus.LENGTH),
            CALLED=int(RowStatus.CALLED),
            STOP=int(RowStatus.STOP),
            DELIVERED=int(RowStatus.DELIVERED),
            TEACHER_STOP=int(RowStatus.TEACHER_STOP),
            TEACHER_ENDED=int(RowStatus.TEACHER_ENDED),
            num_warps=4,
            num_stages=1,
        )
