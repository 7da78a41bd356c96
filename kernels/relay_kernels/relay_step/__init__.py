"""One decode step of the batch behind the logits: sampling, log-probs, commands, budgets, stops, writes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from relay_kernels.backends import choose_backend
from relay_kernels.relay_step.commands import MAX_REQUEST, CommandTable, advance_commands
from relay_kernels.relay_step.native_impl import REFUSED, relay_step_native
from relay_kernels.relay_step.philox import RandomStream, philox_uniform
from relay_kernels.relay_step.reference import relay_step_reference
from relay_kernels.relay_step.state import RelayStepState, RowStatus, Writer

__all__ = [
    "MAX_REQUEST",
    "CommandTable",
    "RandomStream",
    "RelayStepState",
    "RowStatus",
    "Writer",
    "advance_commands",
    "philox_uniform",
    "relay_step",
]


def relay_step(
    logits: Tensor,
    state: RelayStepState,
    *,
    writer: Literal["student", "teacher"],
    eos_token_ids: Tensor,
    slots: Tensor | None = None,
    table: CommandTable | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    mask_commands: bool = False,
    seed: int = 0,
    uniforms: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """Samples the next token of every row whose status is `writer`'s and moves `state` on, in place; all other rows
    are left alone.

    logits: [N, V] bf16, fp16 or fp32, row i for slot slots[i], or for slot i when `slots` is None (then N = S).
    slots: [N] int64, distinct. eos_token_ids: [E] int64. table: the student's automaton; None forbids calls for want
    of one. Sampling parameters: one number for all rows, or [N] tensors; their meaning is that of
    `sampling.sample_tokens`. mask_commands: ban the tokens that would complete a command in rows where
    `state.can_call` is False. The draw of a row is `philox_uniform(seed, prompt_id, sample_index, num_tokens,
    stream)` with the stream of the writer; `uniforms`, [S, L] fp32, are the same draws computed beforehand.

    A row whose token is an end-of-sequence token stops; else one that reaches its token limit has status LENGTH; else
    a completed command gives CALLED; a teacher's row that reaches its span limit gives DELIVERED, and its
    end-of-sequence token TEACHER_STOP or, where `ends_on_teacher_eos` is False, TEACHER_ENDED without being written.
    Raises ValueError that names the argument.
    """
    _check(logits, state, writer, slots, table)
    arguments = (
        logits, state, slots, Writer[writer.upper()], table if writer == "student" else None, eos_token_ids,
        temperature, top_k, top_p, min_p, mask_commands, seed, uniforms,
    )  # fmt: skip
    chosen = choose_backend("relay_step", backend, logits.device, no_native=None)
    if chosen == "native" and relay_step_native(*arguments):
        return
    _check_devices(
        logits, slots=slots, eos_token_ids=eos_token_ids, table=None if table is None else table.next_state,
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, uniforms=uniforms,
    )  # fmt: skip
    if chosen == "triton":
        from relay_kernels.relay_step.triton_impl import relay_step_triton

        relay_step_triton(*arguments)
    elif backend == "native":
        raise RuntimeError(f"backend='native' of relay_step cannot run: {REFUSED}")
    else:
        relay_step_reference(*arguments)


def _check(
    logits: Tensor, state: RelayStepState, writer: str, slots: Tensor | None, table: CommandTable | None
) -> None:
    """What can be seen without reading a value back."""
    if writer not in ("student", "teacher"):
        raise ValueError(f"writer={writer!r} of relay_step is unknown; it is 'student' or 'teacher'")
    if logits.dim() != 2 or logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"logits must be [N, V] fp32, bf16 or fp16, not {logits.dtype} {tuple(logits.shape)}")
    if logits.device != state.tokens.device:
        raise ValueError(f"logits are on {logits.device}, state is on {state.tokens.device}")
    num_rows = state.num_slots if slots is None else slots.shape[0]
    if logits.shape[0] != num_rows:
        raise ValueError(f"logits have {logits.shape[0]} rows for {num_rows} slots")
    if table is not None and table.vocab_size != logits.shape[1]:
        raise ValueError(f"table is for a vocabulary of {table.vocab_size}, logits have {logits.shape[1]}")


def _check_devices(logits: Tensor, **others: object) -> None:
    """Raises ValueError unless all tensors are where the logits are."""
    for name, other in others.items():
        if isinstance(other, Tensor) and other.device != logits.device:
            raise ValueError(
                f"{name} of relay_step must be on {logits.device}, where the logits are, not {other.device}"
            )
