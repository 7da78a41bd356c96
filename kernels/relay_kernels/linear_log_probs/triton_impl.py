# ruff: noqa: N803 - compile-time arguments are capitals in Triton
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Log-probability and entropy of a linear head in Triton: vocabulary tiles are streamed through an online softmax.

Shapes: T tokens, D hidden, V vocabulary, P splits of the vocabulary, C vocabulary entries of a chunk.

Forward: a program owns BLOCK_T tokens and SPLIT_TILES tiles of the vocabulary, and keeps three numbers per token; a
second kernel merges the splits. Backward: for one chunk of the vocabulary at a time, a kernel computes the logits again
and writes their gradient [T, C] at the dtype of `hidden`; the two products with it are PyTorch's. Chunks run over the
vocabulary, not over tokens, because then the large gradient, that of the head, is written once and needs no fp32 copy.

Logits are kept in base 2: y = (hidden weight^T + bias) * log2(e) / temperature.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.runtime.driver import driver

from relay_kernels.backends import is_interpreting, on_device

SPLIT_TILES = 8
"""Vocabulary tiles of one program: a constant, so that a token's result does not depend on its neighbours."""
CHUNK_BYTES = 256 << 20
"""Largest gradient of the logits that is held."""
LOG2_E = math.log2(math.e)
HOPPER = 90
FLOOR = tl.constexpr(-1e30)
"""Stands in for the logarithm of 0: its product with a probability of 0 is 0, where -inf would give NaN."""


@triton.jit
def _logits_tile(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    token,
    entry,
    scale,
    num_tokens,
    vocab_size,
    hidden_stride,
    weight_stride,
    DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y of a tile, [BLOCK_T, BLOCK_V] fp32. Beyond the edges it repeats the last row or column, which needs no mask."""
    row = tl.minimum(token, num_tokens - 1).to(tl.int64)
    column = tl.minimum(entry, vocab_size - 1).to(tl.int64)
    dim = tl.arange(0, BLOCK_D)
    hidden_pointers = hidden_ptr + row[:, None] * hidden_stride + dim[None, :]
    weight_pointers = weight_ptr + column[None, :] * weight_stride + dim[:, None]
    logits = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
    for first in range(0, DIM, BLOCK_D):
        if DIM % BLOCK_D == 0:
            hidden = tl.load(hidden_pointers)
            weight = tl.load(weight_pointers)
        else:
            hidden = tl.load(hidden_pointers, mask=dim[None, :] < DIM - first, other=0.0)
            weight = tl.load(weight_pointers, mask=dim[:, None] < DIM - first, other=0.0)
        logits = tl.dot(hidden, weight, logits, input_precision=PRECISION)
        hidden_pointers += BLOCK_D
        weight_pointers += BLOCK_D
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + column).to(tl.float32)[None, :]
    return logits * scale


@triton.jit
def _forward_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    targets_ptr,
    peak_ptr,
    total_ptr,
    moment_ptr,
    target_ptr,
    scale,
    num_tokens,
    vocab_size,
    hidden_stride,
    weight_stride,
    DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of one split, per token: the largest y, sum 2^(y - peak), sum 2^(y - peak) (y - peak), and y of its targets."""
    split = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_token = token < num_tokens
    target = tl.load(targets_ptr + token, mask=is_token, other=-1).to(tl.int32)
    peak = tl.full([BLOCK_T], FLOOR, tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    moment = tl.zeros([BLOCK_T], tl.float32)
    start = tl.program_id(1) * SPLIT
    for first in range(start, tl.minimum(start + SPLIT, vocab_size), BLOCK_V):
        entry = first + tl.arange(0, BLOCK_V)
        logits = _logits_tile(
            hidden_ptr,
            weight_ptr,
            bias_ptr,
            token,
            entry,
            scale,
            num_tokens,
            vocab_size,
            hidden_stride,
            weight_stride,
            DIM,
            BLOCK_T,
            BLOCK_V,
            BLOCK_D,
            PRECISION,
        )
        # Few tiles hold a target of these tokens; the others skip the search.
        is_here = (target >= first) & (target < first + BLOCK_V)
        if tl.max(is_here.to(tl.int32), axis=0) > 0:
            found = tl.sum(tl.where(target[:, None] == entry[None, :], logits, 0.0), axis=1)
            tl.store(target_ptr + token, found, mask=is_here & is_token)
        new_peak = tl.maximum(peak, tl.max(logits, axis=1))
        drop = tl.maximum(peak - new_peak, FLOOR)
        rescale = tl.exp2(drop)
        shifted = tl.maximum(logits - new_peak[:, None], FLOOR)
        weights = tl.where((entry < vocab_size)[None, :], tl.exp2(shifted), 0.0)
        moment = rescale * (moment + total * drop) + tl.sum(weights * shifted, axis=1)
        total = rescale * total + tl.sum(weights, axis=1)
        peak = new_peak
    offset = split * num_tokens + token
    tl.store(peak_ptr + offset, peak, mask=is_token)
    tl.store(total_ptr + offset, total, mask=is_token)
    tl.store(moment_ptr + offset, moment, mask=is_token)


@triton.jit
def _merge_kernel(
    peak_ptr,
    total_ptr,
    moment_ptr,
    target_ptr,
    log_probs_ptr,
    entropy_ptr,
    row_peak_ptr,
    log_total_ptr,
    num_tokens,
    num_splits,
    LN_2: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The splits of BLOCK tokens into log_prob and entropy (natural), and what the backward pass keeps (base 2)."""
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_token = token < num_tokens
    peak = tl.full([BLOCK], FLOOR, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    moment = tl.zeros([BLOCK], tl.float32)
    for split in range(num_splits):
        offset = tl.cast(split, tl.int64) * num_tokens + token
        part_peak = tl.load(peak_ptr + offset, mask=is_token, other=0.0)
        part_total = tl.load(total_ptr + offset, mask=is_token, other=1.0)
        part_moment = tl.load(moment_ptr + offset, mask=is_token, other=0.0)
        new_peak = tl.maximum(peak, part_peak)
        drop = tl.maximum(peak - new_peak, FLOOR)
        part_drop = tl.maximum(part_peak - new_peak, FLOOR)
        moment = tl.exp2(drop) * (moment + total * drop) + tl.exp2(part_drop) * (part_moment + part_total * part_drop)
        total = tl.exp2(drop) * total + tl.exp2(part_drop) * part_total
        peak = new_peak
    log_total = tl.log2(total)
    target = tl.load(target_ptr + token, mask=is_token, other=0.0)
    tl.store(log_probs_ptr + token, ((target - peak) - log_total) * LN_2, mask=is_token)
    tl.store(entropy_ptr + token, (log_total - moment / total) * LN_2, mask=is_token)
    tl.store(row_peak_ptr + token, peak, mask=is_token)
    tl.store(log_total_ptr + token, log_total, mask=is_token)


@triton.jit
def _gradient_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    targets_ptr,
    row_peak_ptr,
    log_total_ptr,
    entropy_ptr,
    grad_log_probs_ptr,
    grad_entropy_ptr,
    grad_logits_ptr,
    scale,
    inverse_temperature,
    first_entry,
    num_tokens,
    vocab_size,
    hidden_stride,
    weight_stride,
    grad_stride,
    DIM: tl.constexpr,
    LN_2: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of the gradient in (hidden weight^T + bias), for the vocabulary from `first_entry` on."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    local = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    entry = first_entry + local
    is_token = token < num_tokens
    logits = _logits_tile(
        hidden_ptr,
        weight_ptr,
        bias_ptr,
        token,
        entry,
        scale,
        num_tokens,
        vocab_size,
        hidden_stride,
        weight_stride,
        DIM,
        BLOCK_T,
        BLOCK_V,
        BLOCK_D,
        PRECISION,
    )
    peak = tl.load(row_peak_ptr + token, mask=is_token, other=float("inf"))
    log_total = tl.load(log_total_ptr + token, mask=is_token, other=0.0)
    log_probs = tl.maximum((logits - peak[:, None]) - log_total[:, None], FLOOR)  # base 2
    # gradient = g_log_prob (1[target] - p) - g_entropy p (ln p + H) = g_log_prob 1[target] - p (level + slope log2 p)
    level = tl.zeros([BLOCK_T], tl.float32)
    if grad_log_probs_ptr is not None:
        level += tl.load(grad_log_probs_ptr + token, mask=is_token, other=0.0) * inverse_temperature
    at_target = level
    if grad_entropy_ptr is not None:
        grad_entropy = tl.load(grad_entropy_ptr + token, mask=is_token, other=0.0) * inverse_temperature
        level += grad_entropy * tl.load(entropy_ptr + token, mask=is_token, other=0.0)
        grad = -tl.exp2(log_probs) * (level[:, None] + (grad_entropy * LN_2)[:, None] * log_probs)
    else:
        grad = -tl.exp2(log_probs) * level[:, None]
    if grad_log_probs_ptr is not None:
        target = tl.load(targets_ptr + token, mask=is_token, other=-1).to(tl.int32)
        grad += tl.where(target[:, None] == entry[None, :], at_target[:, None], 0.0)
    pointers = grad_logits_ptr + token.to(tl.int64)[:, None] * grad_stride + local[None, :]
    tl.store(
        pointers, grad.to(grad_logits_ptr.dtype.element_ty), mask=is_token[:, None] & (entry < vocab_size)[None, :]
    )


class _LinearLogProbs(torch.autograd.Function):
    """Keeps three numbers per token for the backward pass and computes the logits again there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor]:
        hidden, wide_weight = _rows_contiguous(hidden), _rows_contiguous(weight.to(hidden.dtype))
        targets, bias = targets.contiguous(), None if bias is None else bias.contiguous()
        log_probs, entropy, row_peak, log_total = _forward(hidden, wide_weight, targets, bias, temperature)
        ctx.save_for_backward(hidden, weight, targets, bias, row_peak, log_total, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, bias, *statistics = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias, _ = ctx.needs_input_grad
        work_weight = _rows_contiguous(weight.to(hidden.dtype))
        grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device) if needs_hidden else None
        grad_weight = torch.zeros_like(work_weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
        grads = [None if grad is None else grad.float().contiguous() for grad in (grad_log_probs, grad_entropy)]
        with on_device(hidden), torch.autocast(hidden.device.type, enabled=False):
            for first, grad_logits in _gradient_chunks(
                hidden, work_weight, targets, bias, statistics, grads, ctx.temperature
            ):
                entries = slice(first, first + grad_logits.shape[1])
                if grad_hidden is not None:
                    _add_product(grad_hidden, grad_logits, work_weight[entries])
                if grad_weight is not None:
                    torch.mm(grad_logits.T, hidden, out=grad_weight[entries])
                if grad_bias is not None:
                    grad_bias[entries] = grad_logits.sum(0, dtype=torch.float32)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            grad_bias,
            None,
        )


def linear_log_probs_triton(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log_probs [T], entropy [T]) in fp32, differentiable; products take factors of the dtype of `hidden`."""
    result: tuple[Tensor, Tensor] = _LinearLogProbs.apply(hidden, weight, targets, bias, temperature)
    return result


def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(log_probs, entropy, row_peak, log_total), each [T] fp32; the last two in base 2."""
    num_tokens, dim = hidden.shape
    vocab_size = weight.shape[0]
    tiles = _tiles(hidden.dtype, dim)
    split = SPLIT_TILES * tiles["BLOCK_V"]
    num_splits = triton.cdiv(vocab_size, split)
    results = [torch.empty(num_tokens, dtype=torch.float32, device=hidden.device) for _ in range(4)]
    log_probs, entropy, row_peak, log_total = results
    if num_tokens == 0:
        return log_probs, entropy, row_peak, log_total
    # A target outside the vocabulary is found by no program and leaves NaN: the values are not read back to refuse it.
    target = torch.full_like(log_probs, math.nan)
    parts = [torch.empty((num_splits, num_tokens), dtype=torch.float32, device=hidden.device) for _ in range(3)]
    with on_device(hidden):
        _forward_kernel[(triton.cdiv(num_tokens, tiles["BLOCK_T"]), num_splits)](
            hidden,
            weight,
            bias,
            targets,
            *parts,
            target,
            LOG2_E / temperature,
            num_tokens,
            vocab_size,
            hidden.stride(0),
            weight.stride(0),
            DIM=dim,
            SPLIT=split,
            **tiles,
        )
        _merge_kernel[(triton.cdiv(num_tokens, 128),)](
            *parts,
            target,
            log_probs,
            entropy,
            row_peak,
            log_total,
            num_tokens,
            num_splits,
            LN_2=1.0 / LOG2_E,
            BLOCK=128,
            num_warps=4,
        )
    return log_probs, entropy, row_peak, log_total


def _gradient_chunks(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    statistics: list[Tensor],
    grads: list[Tensor | None],
    temperature: float,
) -> Iterator[tuple[int, Tensor]]:
    """Yields (first vocabulary entry, gradient of the logits [T, C]); the next chunk overwrites the last."""
    num_tokens, dim = hidden.shape
    vocab_size = weight.shape[0]
    if num_tokens == 0:
        return
    tiles = _tiles(hidden.dtype, dim)
    affordable = CHUNK_BYTES // (num_tokens * hidden.element_size())
    chunk = min(max(affordable, 1), vocab_size)
    chunk = triton.cdiv(chunk, tiles["BLOCK_V"]) * tiles["BLOCK_V"]
    buffer = torch.empty((num_tokens, chunk), dtype=hidden.dtype, device=hidden.device)
    for first in range(0, vocab_size, chunk):
        size = min(chunk, vocab_size - first)
        _gradient_kernel[(triton.cdiv(num_tokens, tiles["BLOCK_T"]), triton.cdiv(size, tiles["BLOCK_V"]))](
            hidden,
            weight,
            bias,
            targets,
            *statistics,
            *grads,
            buffer,
            LOG2_E / temperature,
            1.0 / temperature,
            first,
            num_tokens,
            vocab_size,
            hidden.stride(0),
            weight.stride(0),
            buffer.stride(0),
            DIM=dim,
            LN_2=1.0 / LOG2_E,
            **tiles,
        )
        yield first, buffer[:, :size]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right for an fp32 total; 16-bit factors on a GPU are multiplied as they are and added in fp32."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif left.is_cuda:
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(left.float(), right.float())


def _rows_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself if its rows are contiguous in memory, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _tiles(dtype: torch.dtype, dim: int) -> dict[str, Any]:
    """Tile sizes and launch options: the largest that keep their registers on the architecture at hand.

    fp32 multiplies outside the tensor cores. Rows that are no multiple of a tile are loaded under a mask.
    """
    if dtype == torch.float32:
        sizes = {"BLOCK_T": 32, "BLOCK_V": 32, "BLOCK_D": 32, "num_warps": 4, "num_stages": 2}
    elif dim % 64 != 0:
        sizes = {"BLOCK_T": 64, "BLOCK_V": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 3}
    elif is_interpreting() or driver.active.get_current_target().arch == HOPPER:
        sizes = {"BLOCK_T": 128, "BLOCK_V": 256, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}
    else:
        sizes = {"BLOCK_T": 128, "BLOCK_V": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3}
    return {**sizes, "PRECISION": "ieee" if dtype == torch.float32 else "tf32"}
