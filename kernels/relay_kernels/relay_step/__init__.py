"""One decode step of the batch behind the logits: sampling, log-probs, commands, budgets, stops, writes."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from relay_kernels.backends import choose_backend
from relay_kernels.relay_step.checks import check_logits, check_step
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
    slots: [N] int64 or int32, distinct. eos_token_ids: [E] int64 or int32, in [0, V). table: the student's automaton;
    None forbids calls for want of one. Sampling parameters: one number for all rows, or [N] tensors of fp32 or
    integers; their meaning is that of `sampling.sample_tokens`. mask_commands: ban the tokens that would complete a
    command in rows where `state.can_call` is False. The draw of a row is `philox_uniform(seed, prompt_id,
    sample_index, num_tokens, stream)` with the stream of the writer; `uniforms`, [S, L] fp32, are the same draws
    computed beforehand.

    A row whose token is an end-of-sequence token stops; else one that reaches its token limit has status LENGTH; else
    a completed command gives CALLED; a teacher's row that reaches its span limit gives DELIVERED, and its
    end-of-sequence token TEACHER_STOP or, where `ends_on_teacher_eos` is False, TEACHER_ENDED without being written.
    Raises ValueError that names the argument. Values on a CUDA device are not read back: there a row is left alone if
    its slot does not exist, or its length or automaton state lies outside the state's tensors; an action that the table
    does not have keeps n; the result of rows with one slot is not defined, but nothing is written outside the state.
    """
    check_logits(logits, state, writer, slots, table, seed)
    call = (
        logits, state, slots, Writer[writer.upper()], table if writer == "student" else None, eos_token_ids,
        temperature, top_k, top_p, min_p, mask_commands, seed, uniforms,
    )  # fmt: skip
    chosen = choose_backend("relay_step", backend, logits.device, no_native=None)
    if chosen == "native" and relay_step_native(*call):
        return
    is_strict = chosen == "triton" or backend == "native"
    check_step(*call[:-3], uniforms, contiguous_for=chosen if is_strict else None)
    if chosen == "triton":
        from relay_kernels.relay_step.triton_impl import relay_step_triton

        relay_step_triton(*call)
    elif backend == "native":
        raise RuntimeError(f"backend='native' of relay_step cannot run: {REFUSED}")
    else:
        relay_step_reference(*call)
