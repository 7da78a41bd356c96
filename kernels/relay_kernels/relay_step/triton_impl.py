"""The launch of the relay step in Triton; the kernel: triton_kernel.py.

Shapes: N rows of logits, S slots, V vocabulary, P splits of a row, K pieces of a row.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from relay_kernels.backends import on_device
from relay_kernels.relay_step.commands import MAX_REQUEST, CommandTable
from relay_kernels.relay_step.philox import RandomStream
from relay_kernels.relay_step.state import RelayStepState, RowStatus, Writer
from relay_kernels.relay_step.triton_kernel import step_kernel
from relay_kernels.relay_step.triton_threshold import PIECE, PIECES

MASK_64 = (1 << 64) - 1
KEY_SHIFT = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Low bits of the fp32 form of a logit that are always zero: 16-bit logits need fewer probes."""


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
        step_kernel[(num_rows * num_splits,)](
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
            state.num_arrived,
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
            state.num_slots,
            state.max_tokens,
            0 if table is None else table.num_states,
            0 if table is None else table.digit_scale.numel(),
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
