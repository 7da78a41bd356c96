"""One decode step of the batch behind the logits: sampling, log-probs, commands, budgets, stops, writes."""

from __future__ import annotations

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from relay_kernels.backends import FAKE, choose_backend
from relay_kernels.relay_step.checks import check_logits, check_step
from relay_kernels.relay_step.commands import MAX_REQUEST, CommandTable, advance_commands
from relay_kernels.relay_step.inputs import RelayStepInputs
from relay_kernels.relay_step.native_impl import REFUSED, relay_step_native
from relay_kernels.relay_step.philox import RandomStream, philox_uniform, signed_seed
from relay_kernels.relay_step.reference import relay_step_reference
from relay_kernels.relay_step.state import CommandRule, RelayStepState, RowStatus, TokenSource

__all__ = [
    "MAX_REQUEST",
    "CommandRule",
    "CommandTable",
    "RandomStream",
    "RelayStepInputs",
    "RelayStepState",
    "RowStatus",
    "TokenSource",
    "advance_commands",
    "philox_uniform",
    "relay_step",
    "signed_seed",
]


def relay_step(
    logits: Tensor,
    state: RelayStepState,
    *,
    writer: TokenSource,
    eos_token_ids: Tensor,
    rows: Tensor | None = None,
    table: CommandTable | None = None,
    truncates: bool = True,
    backend: str = "auto",
) -> None:
    """Samples the next token of every row whose status is `writer`'s and moves `state` on, in place; all other rows
    are left alone.

    logits: [N, V] bf16, fp16 or fp32, row i for row rows[i] of the state, or for row i when `rows` is None (then N =
    S). rows: [N] int64 or int32, distinct. eos_token_ids: [E] int64 or int32, in [0, V). table: the student's
    automaton; None: no token completes a command. truncates: False promises that no row of this call has top_k, top_p
    or min_p on, which lets a backend leave that search out; True is right for any mixture.

    How a row is sampled (`sampling.sample_tokens`), what its commands do (`CommandRule`) and its random key stand in
    the state. Its draw is `philox_uniform(seed, prompt_id, sample_index, num_tokens, RandomStream[writer.name])`, so it
    is the same alone and in any batch.

    A row whose token is an end-of-sequence token stops; else one that reaches its token limit has status LENGTH; else
    a completed command under CommandRule.CALL gives CALLED; a teacher's row that reaches its span limit gives
    DELIVERED, and its end-of-sequence token TEACHER_STOP or, where `ends_on_teacher_eos` is False, TEACHER_ENDED
    without being written.

    Raises ValueError that names the argument. Values on a CUDA device are not read back: there a row is left alone if
    it does not exist, or its length or automaton state lies outside the state's tensors; an action that the table does
    not have keeps n; an unknown command rule counts as MASK_OPEN; a sampling value out of range, NaN included, or a
    broken promise of `truncates` gives the row some token of the vocabulary; the result of a row named twice is not
    defined. Nothing is written outside the state, nor to other rows.
    """
    inputs = RelayStepInputs(logits, state, writer, eos_token_ids, rows, table, truncates)
    check_logits(inputs)
    reason = FAKE if type(logits) is FakeTensor else None
    chosen = choose_backend("relay_step", backend, logits.device, why_not=reason, no_native=reason)
    if chosen == "native" and relay_step_native(inputs):
        return
    is_strict = chosen == "triton" or backend == "native"
    check_step(inputs, contiguous_for=chosen if is_strict else None)
    if chosen == "triton":
        from relay_kernels.relay_step.triton_impl import relay_step_triton

        relay_step_triton(inputs)
    elif backend == "native":
        raise RuntimeError(f"backend='native' of relay_step cannot run: {REFUSED}")
    else:
        relay_step_reference(inputs)
