"""The relay step in plain PyTorch: the definition. No host synchronisation.

Shapes: N rows of logits, S rows of the state, V vocabulary, L longest completion, E end-of-sequence tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from relay_kernels.relay_step.commands import CommandTable, advance_commands
from relay_kernels.relay_step.inputs import RelayStepInputs
from relay_kernels.relay_step.philox import RandomStream, philox_uniform
from relay_kernels.relay_step.sampling import sample_tokens
from relay_kernels.relay_step.state import CommandRule, RelayStepState, RowStatus, TokenSource


def relay_step_reference(inputs: RelayStepInputs) -> None:
    """See `relay_kernels.relay_step`."""
    state, table, writer = inputs.state, inputs.command_table, inputs.writer
    rows = None if inputs.rows is None else inputs.rows.long()
    position = _take(state.num_tokens, rows)
    status = _take(state.status, rows)
    is_active = status == int(writer)  # torch.compile takes a tensor never to equal a member of an enum
    command_state = torch.where(is_active, _take(state.command_state, rows), 0)  # others' may be anything
    token, log_prob, sampling_log_prob = _sample(inputs, rows, position, command_state)

    is_eos = (token[:, None] == inputs.eos_token_ids).any(-1)
    length = position + 1
    is_full = length >= _take(state.token_limit, rows)
    is_written = is_active
    if writer == TokenSource.STUDENT:
        new_status = torch.where(is_full, int(RowStatus.LENGTH), int(RowStatus.STUDENT))
        if table is not None:
            is_call = _advance(state, rows, table, command_state, token, is_active) & ~is_full
            new_status.masked_fill_(is_call, int(RowStatus.CALLED))
        new_status.masked_fill_(is_eos, int(RowStatus.STOP))
    else:
        new_status = torch.where(
            length >= _take(state.span_limit, rows), int(RowStatus.DELIVERED), int(RowStatus.TEACHER)
        )
        new_status.masked_fill_(is_full, int(RowStatus.LENGTH))
        ends = _take(state.ends_on_teacher_eos, rows)
        ended = torch.where(ends, int(RowStatus.TEACHER_STOP), int(RowStatus.TEACHER_ENDED))
        new_status = torch.where(is_eos, ended, new_status)
        is_written = is_active & (ends | ~is_eos)

    # Rows that are left alone write to the scratch column. Taken before `num_tokens` changes: without `rows`,
    # `position` is that very tensor.
    column = torch.where(is_written, position, state.max_tokens)
    _store(state.status, rows, torch.where(is_active, new_status.to(torch.uint8), status))
    _store(state.num_tokens, rows, torch.where(is_written, length, position))
    _store(state.last_token, rows, torch.where(is_written, token, _take(state.last_token, rows)))
    _write(state.tokens, rows, column, token)
    _write(state.token_source, rows, column, torch.full_like(status, int(writer)))
    _write(state.log_probs, rows, column, log_prob)
    _write(state.sampling_log_probs, rows, column, sampling_log_prob)


def _sample(
    inputs: RelayStepInputs, rows: Tensor | None, position: Tensor, command_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(token, log_prob, sampling_log_prob), each [N], by each row's own sampling parameters and key."""
    state, table = inputs.state, inputs.command_table
    is_banned = None
    if table is not None:
        rule = _take(state.command_rule, rows)[:, None]
        is_banned = table.is_complete[command_state] & (rule >= int(CommandRule.MASK_CLOSE))
        is_banned |= table.is_opening[command_state] & (rule >= int(CommandRule.MASK_OPEN))
    seed, prompt_id, sample_index = (_take(x, rows) for x in (state.seed, state.prompt_id, state.sample_index))
    return sample_tokens(
        inputs.logits,
        philox_uniform(seed, prompt_id, sample_index, position, RandomStream[inputs.writer.name]),
        temperature=_take(state.temperature, rows),
        top_k=_take(state.top_k, rows),
        top_p=_take(state.top_p, rows),
        min_p=_take(state.min_p, rows),
        truncates=inputs.truncates,
        is_banned=is_banned,
    )


def _advance(
    state: RelayStepState,
    rows: Tensor | None,
    table: CommandTable,
    command_state: Tensor,
    token: Tensor,
    is_active: Tensor,
) -> Tensor:
    """Moves the automata of active rows on; returns [N] bool: the row's token completed a command that calls."""
    n = _take(state.command_n, rows)
    new_state, new_n, is_complete = advance_commands(table, command_state, n, token)
    _store(state.command_state, rows, torch.where(is_active, new_state, _take(state.command_state, rows)))
    _store(state.command_n, rows, torch.where(is_active, new_n, n))
    return is_complete & (_take(state.command_rule, rows) == int(CommandRule.CALL))


def _take(values: Tensor, rows: Tensor | None) -> Tensor:
    """The values of the rows that the logits are for."""
    return values if rows is None else values.index_select(0, rows)


def _store(target: Tensor, rows: Tensor | None, values: Tensor) -> None:
    """Writes one value per row."""
    if rows is None:
        target.copy_(values)
    else:
        target.index_copy_(0, rows, values)


def _write(target: Tensor, rows: Tensor | None, column: Tensor, values: Tensor) -> None:
    """target[row, column] = value per row."""
    if rows is None:
        target.scatter_(1, column[:, None], values[:, None])
    else:
        target.index_put_((rows, column), values)
