"""The launch of the relay step in Triton; the kernel: triton_kernel.py.

Shapes: N rows of logits, S rows of the state, V vocabulary, P splits of a row, K pieces of a row.
"""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter

import torch
import triton
from torch import Tensor

from relay_kernels.backends import on_device
from relay_kernels.relay_step.commands import MAX_REQUEST, CommandTable
from relay_kernels.relay_step.inputs import RelayStepInputs
from relay_kernels.relay_step.philox import RandomStream
from relay_kernels.relay_step.state import CommandRule, RelayStepState, RowStatus, TokenSource
from relay_kernels.relay_step.triton_kernel import step_kernel
from relay_kernels.relay_step.triton_threshold import PIECE, PIECES

KEY_SHIFT = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Low bits of the fp32 form of a logit that are always zero: 16-bit logits need fewer probes."""

_tensors_of_state = attrgetter(*(field.name for field in fields(RelayStepState)))
_tensors_of_table = attrgetter(*(field.name for field in fields(CommandTable)))


def relay_step_triton(inputs: RelayStepInputs) -> None:
    """`relay_step`, in place, in one launch."""
    logits, state, table, ends = inputs.logits, inputs.state, inputs.command_table, inputs.eos_token_ids
    num_logits, vocab_size = logits.shape
    if num_logits == 0:
        return
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    device = logits.device
    num_splits = triton.cdiv(vocab_size, PIECE.value * PIECES.value)
    num_pieces = num_splits * PIECES.value
    split_sums = torch.empty((3, num_logits, num_splits), dtype=torch.float32, device=device)
    piece_sums = torch.empty((3, num_logits, num_pieces), dtype=torch.float32, device=device)
    piece_list = torch.empty((num_logits, num_pieces) if inputs.truncates else 0, dtype=torch.int32, device=device)
    with on_device(logits):
        step_kernel[(num_logits * num_splits,)](
            logits,
            inputs.rows,
            *map(_as_bytes, _tensors_of_state(state)),  # in the order of the record's fields
            *([None] * 6 if table is None else map(_as_bytes, _tensors_of_table(table))),
            ends,
            split_sums,
            split_sums[2],
            *piece_sums,
            piece_list,
            logits.stride(0),
            state.tokens.stride(0),
            vocab_size,
            num_splits,
            ends.shape[0],
            state.num_rows,
            state.max_tokens,
            0 if table is None else table.num_states,
            0 if table is None else table.digit_scale.numel(),
            WRITER=int(inputs.writer),
            IS_STUDENT=inputs.writer == TokenSource.STUDENT,
            STREAM=int(RandomStream[inputs.writer.name]),
            HAS_TABLE=table is not None,
            CUT=inputs.truncates,
            SHIFT=KEY_SHIFT[logits.dtype],
            BLOCK_P=triton.next_power_of_2(num_splits),
            BLOCK_E=triton.next_power_of_2(max(ends.shape[0], 1)),
            MAX_N=MAX_REQUEST,
            CALL=int(CommandRule.CALL),
            LENGTH=int(RowStatus.LENGTH),
            CALLED=int(RowStatus.CALLED),
            STOP=int(RowStatus.STOP),
            DELIVERED=int(RowStatus.DELIVERED),
            TEACHER_STOP=int(RowStatus.TEACHER_STOP),
            TEACHER_ENDED=int(RowStatus.TEACHER_ENDED),
            num_warps=4,
            num_stages=1,
        )


def _as_bytes(tensor: Tensor) -> Tensor:
    """Booleans as bytes, which Triton loads as they are; other tensors unchanged."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
