"""The relay step in the native library: `kernels/csrc/relay_step.cc`, on CPU and CUDA tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.backends import on_device
from relay_kernels.native import run_native
from relay_kernels.relay_step.commands import CommandTable
from relay_kernels.relay_step.state import RelayStepState, Writer

REFUSED = "eos_token_ids is not int64, or on a CUDA device the vocabulary has more than 1,048,576 tokens"
"""What it means when the library refuses a call whose arguments are good; it has then written nothing."""


def relay_step_native(
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
) -> bool:
    """`relay_step`, in place; False, and nothing done, where the library refuses the arguments."""
    commands = (None,) * 5 if table is None else (
        table.next_state, table.is_complete, table.digit_action, table.digit_scale, table.digit_value
    )  # fmt: skip
    signed_seed = (seed + 2**63) % 2**64 - 2**63  # its low 64 bits, as the int64 that crosses over
    with on_device(logits):
        return run_native(
            "relay_step",
            logits,
            slots,
            int(writer),
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
            state.can_call,
            state.ends_on_teacher_eos,
            state.prompt_id,
            state.sample_index,
            *commands,
            eos_token_ids,
            temperature,
            top_k,
            top_p,
            min_p,
            mask_commands,
            signed_seed,
            uniforms,
            torch.get_num_threads(),
        )
