# ruff: noqa: N803, PLR0915, SIM102 - compile-time arguments are capitals, a kernel is one function, None is decided first
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""An RMS norm and the linear layers behind it in Triton: one launch, which reads every weight once, where it lies.

Shapes: N rows (up to MAX_ROWS, the height of a tile), D hidden size, O outputs of a weight. A program owns BLOCK_O
outputs of one weight, or of gate and up alike, and walks along D in steps of SLICES x BLOCK_K: each of its warps
multiplies one slice, and the slices are added up at the end. The row scale of the norm commutes with the product, so
it is applied to the outputs: no program waits for a first pass over the states. No output depends on another row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from relay_kernels.backends import as_rows, on_device
from relay_kernels.norm_linear import MAX_ROWS

SLICES = 4
"""Parts of a step, one a warp: four short chains of products in place of a long one."""
SLICE_BYTES = 128
"""Of a weight's row in one slice."""
NUM_STAGES = 4
"""Steps under way, and the one in use. Memory that gives 4.3 TB/s after about 1 us wants 4.3 MB under way (Little's
law), some 32 KB for each of 132 multiprocessors. Three steps of 32 weight rows of 4 x 128 bytes are 48 KB a program,
and the smallest launch, the 4,096 outputs of query, key and value in a 0.6B layer, has 128 programs."""
WEIGHT_ROWS = 32
"""Of a program: with fewer, the states that each program reads and norms anew weigh more than the weights."""


@triton.jit
def _pick(index, first, second, third):
    """The argument of the weight `index`; those that are None are never asked for."""
    chosen = first
    if second is not None:
        if index == 1:
            chosen = second
    if third is not None:
        if index == 2:
            chosen = third
    return chosen


@triton.jit(do_not_specialize=["num_rows"])  # One program for any number of rows, so that a row has the same bits.
def _norm_linear_kernel(
    hidden_ptr,
    residual_ptr,
    norm_ptr,
    total_ptr,
    weight_0,
    weight_1,
    weight_2,
    bias_0,
    bias_1,
    bias_2,
    output_0,
    output_1,
    output_2,
    num_outputs_0,
    num_outputs_1,
    num_outputs_2,
    hidden_stride,
    residual_stride,
    num_rows,
    size,
    eps,
    IS_GATED: tl.constexpr,
    ROWS: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FACTOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK_O outputs of all rows; in the first program also the sum. FACTOR: the dtype that is multiplied."""
    tile = tl.program_id(0)
    writes_total = tile == 0
    index = 0
    if not IS_GATED:
        tiles_0, tiles_1 = tl.cdiv(num_outputs_0, BLOCK_O), tl.cdiv(num_outputs_1, BLOCK_O)
        index = (tile >= tiles_0).to(tl.int32) + (tile >= tiles_0 + tiles_1).to(tl.int32)
        tile -= tl.where(index == 0, 0, tl.where(index == 1, tiles_0, tiles_0 + tiles_1))
    num_outputs = _pick(index, num_outputs_0, num_outputs_1, num_outputs_2)
    weight_ptr = _pick(index, weight_0, weight_1, weight_2)
    output_ptr = _pick(index, output_0, output_1, output_2)

    row = tl.arange(0, ROWS)
    is_row = (row < num_rows)[None, :, None]
    column = tl.arange(0, SLICES)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]  # [S, K]
    output = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    is_output = output < num_outputs
    hidden = hidden_ptr + row.to(tl.int64)[None, :, None] * hidden_stride + column[:, None, :]  # [S, N, K]
    if residual_ptr is not None:
        residual = residual_ptr + row.to(tl.int64)[None, :, None] * residual_stride + column[:, None, :]
        target = total_ptr + row.to(tl.int64)[None, :, None] * size + column[:, None, :]
    offset = output.to(tl.int64)[None, None, :] * size + column[:, :, None]  # [S, K, O]

    sums = tl.zeros([SLICES, ROWS, BLOCK_O], tl.float32)
    up_sums = sums
    squares = tl.zeros([SLICES, ROWS, BLOCK_K], tl.float32)
    for start in range(0, size, SLICES * BLOCK_K):
        in_row = column < size - start
        mask = is_row & in_row[:, None, :]
        states = tl.load(hidden + start, mask=mask, other=0.0).to(tl.float32)
        if residual_ptr is not None:
            states += tl.load(residual + start, mask=mask, other=0.0).to(tl.float32)
            total = states.to(total_ptr.dtype.element_ty)
            tl.store(target + start, total, mask=mask & writes_total)
            states = total.to(tl.float32)
        squares += states * states
        norm = tl.load(norm_ptr + start + column, mask=in_row, other=0.0).to(tl.float32)
        factor = states * norm[:, None, :]
        if PRECISION == "tf32":
            # The tensor cores cut fp32 down to 11 bits: half of the last one, added first, makes it a rounding.
            rounded = (factor.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
            factor = tl.where(tl.abs(factor) < float("inf"), rounded.to(tl.float32, bitcast=True), factor)
        factor = factor.to(FACTOR)
        mask = is_output[None, None, :] & in_row[:, :, None]
        weight = tl.load(weight_ptr + offset + start, mask=mask, other=0.0).to(FACTOR)
        sums = tl.dot(factor, weight, sums, input_precision=PRECISION)
        if IS_GATED:
            up_weight = tl.load(weight_1 + offset + start, mask=mask, other=0.0).to(FACTOR)
            up_sums = tl.dot(factor, up_weight, up_sums, input_precision=PRECISION)

    scale = 1.0 / tl.sqrt(tl.sum(tl.sum(squares, axis=2), axis=0) / size + eps)  # [N]
    result = tl.sum(sums, axis=0) * scale[:, None]  # [N, O]
    if bias_0 is not None:
        bias_ptr = _pick(index, bias_0, bias_1, bias_2)
        result += tl.load(bias_ptr + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
    if IS_GATED:
        up = tl.sum(up_sums, axis=0) * scale[:, None]
        if bias_1 is not None:
            up += tl.load(bias_1 + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
        result = result / (1.0 + tl.exp(-result)) * up
    pointers = output_ptr + row.to(tl.int64)[:, None] * num_outputs + output[None, :]
    tl.store(pointers, result.to(output_ptr.dtype.element_ty), mask=(row < num_rows)[:, None] & is_output[None, :])


def norm_linear_triton(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    residual: Tensor | None,
    is_gated: bool,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """`norm_linear`: ([..., O] of each weight or of the gated pair, [..., D]), in one launch."""
    counts = [weight.shape[0] for weight in weights]
    output_counts = counts[:1] if is_gated else counts
    outputs = tuple(hidden.new_empty((*hidden.shape[:-1], count)) for count in output_counts)
    total = hidden if residual is None else hidden.new_empty(hidden.shape)
    if hidden.numel() == 0:
        return outputs, total
    rows, residual_rows = as_rows(hidden), None if residual is None else as_rows(residual)
    block_o = WEIGHT_ROWS // 2 if is_gated else WEIGHT_ROWS
    num_programs = sum(triton.cdiv(count, block_o) for count in output_counts)
    padding = [None] * (3 - len(weights))
    with on_device(hidden):
        _norm_linear_kernel[(num_programs,)](
            rows,
            residual_rows,
            norm_weight,
            total,
            *weights,
            *padding,
            *biases,
            *padding,
            *outputs,
            *[None] * (3 - len(outputs)),
            *counts,
            *[0] * (3 - len(counts)),
            rows.stride(0),
            0 if residual_rows is None else residual_rows.stride(0),
            rows.shape[0],
            hidden.shape[-1],
            float(eps),
            IS_GATED=is_gated,
            ROWS=MAX_ROWS,
            SLICES=SLICES,
            BLOCK_O=block_o,
            BLOCK_K=SLICE_BYTES // hidden.itemsize,
            FACTOR=tl.bfloat16 if hidden.dtype == torch.bfloat16 else tl.float32,
            PRECISION="tf32" if hidden.dtype == torch.float16 else "ieee",
            num_warps=SLICES,
            num_stages=NUM_STAGES,
        )
    return outputs, total
