"""The relay step in plain PyTorch: the definition, and the CPU path. No host synchronisation.

Shapes: N rows of logits, S slots, V vocabulary, L longest completion, E end-of-sequence tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.relay_step.commands import CommandTable, advance_commands
from relay_kernels.relay_step.philox import RandomStream, philox_uniform
from relay_kernels.relay_step.sampling import sample_tokens
from relay_kernels.relay_step.state import RelayStepState, RowStatus, Writer


def relay_step_reference(
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
    """See `relay_kernels.relay_step`."""
    slots = None if slots is None else slots.long()
    position = _rows(state.num_tokens, slots)
    status = _rows(state.status, slots)
    is_active = status == int(writer)  # torch.compile takes a tensor never to equal a member of an enum
    command_state = None if table is None else _rows(state.command_state, slots)

    is_banned = None
    if mask_commands and table is not None and command_state is not None:
        is_banned = table.is_complete[command_state] & ~_rows(state.can_call, slots)[:, None]
    uniform = None
    if isinstance(temperature, Tensor) or temperature > 0:
        uniform = _uniform(state, slots, position, writer, seed, uniforms)
    token, log_prob, sampling_log_prob = sample_tokens(
        logits, uniform, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, is_banned=is_banned
    )

    is_eos = (token[:, None] == eos_token_ids).any(-1)
    length = position + 1
    is_full = length >= _rows(state.token_limit, slots)
    is_written = is_active
    if writer == Writer.STUDENT:
        new_status = torch.where(is_full, int(RowStatus.LENGTH), int(RowStatus.STUDENT))
        if table is not None and command_state is not None:
            n = _rows(state.command_n, slots)
            new_state, new_n, is_call = advance_commands(table, command_state, n, token)
            is_call &= _rows(state.can_call, slots) & ~is_full
            new_status.masked_fill_(is_call, int(RowStatus.CALLED))
            _store(state.command_state, slots, torch.where(is_active, new_state, command_state))
            _store(state.command_n, slots, torch.where(is_active, new_n, n))
        new_status.masked_fill_(is_eos, int(RowStatus.STOP))
    else:
        new_status = torch.where(
            length >= _rows(state.span_limit, slots), int(RowStatus.DELIVERED), int(RowStatus.TEACHER)
        )
        new_status.masked_fill_(is_full, int(RowStatus.LENGTH))
        ends = _rows(state.ends_on_teacher_eos, slots)
        ended = torch.where(ends, int(RowStatus.TEACHER_STOP), int(RowStatus.TEACHER_ENDED))
        new_status = torch.where(is_eos, ended, new_status)
        is_written = is_active & (ends | ~is_eos)

    # Rows that are left alone write to the scratch column. Taken before `num_tokens` changes: without `slots`,
    # `position` is that very tensor.
    column = torch.where(is_written, position, state.max_tokens)
    _store(state.status, slots, torch.where(is_active, new_status.to(torch.uint8), status))
    _store(state.num_tokens, slots, torch.where(is_written, length, position))
    _store(state.last_token, slots, torch.where(is_written, token, _rows(state.last_token, slots)))
    _write(state.tokens, slots, column, token)
    _write(state.token_source, slots, column, torch.full_like(status, int(writer)))
    _write(state.log_probs, slots, column, log_prob)
    _write(state.sampling_log_probs, slots, column, sampling_log_prob)


def _uniform(
    state: RelayStepState, slots: Tensor | None, position: Tensor, writer: Writer, seed: int, uniforms: Tensor | None
) -> Tensor:
    """[N] fp32: the draw of each row at its position, looked up or computed."""
    if uniforms is not None:
        column = position.clamp(0, uniforms.shape[1] - 1)
        return _rows(uniforms, slots).gather(1, column[:, None])[:, 0]
    stream = RandomStream.STUDENT if writer == Writer.STUDENT else RandomStream.TEACHER
    return philox_uniform(seed, _rows(state.prompt_id, slots), _rows(state.sample_index, slots), position, stream)


def _rows(values: Tensor, slots: Tensor | None) -> Tensor:
    return values if slots is None else values.index_select(0, slots)


def _store(target: Tensor, slots: Tensor | None, values: Tensor) -> None:
    if slots is None:
        target.copy_(values)
    else:
        target.index_copy_(0, slots, values)


def _write(target: Tensor, slots: Tensor | None, column: Tensor, values: Tensor) -> None:
    """target[slot, column] = value per row."""
    if slots is None:
        target.scatter_(1, column[:, None], values[:, None])
    else:
        target.index_put_((slots, column), values)
