"""Argument checks of the relay step: each raises one sentence that names the argument.

Shapes: N rows of logits, S rows of the state, V vocabulary, L longest completion, E end-of-sequence tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping
from dataclasses import fields

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakIdKeyDictionary

from relay_kernels.checks import has_shared_elements
from relay_kernels.relay_step.commands import CommandTable
from relay_kernels.relay_step.inputs import RelayStepInputs
from relay_kernels.relay_step.state import CommandRule, RelayStepState, TokenSource

INTEGERS = (torch.int64, torch.int32)
MOST = {"temperature": math.inf, "top_k": 2**63 - 1, "top_p": 1, "min_p": 1}
"""The largest value of each sampling parameter; the least is 0."""
WRITTEN = {
    f"state.{name}"
    for name in ("tokens", "token_source", "log_probs", "sampling_log_probs", "last_token", "num_tokens", "status")
} | {"state.command_state", "state.command_n"}
EMPTY = RelayStepState.empty(0, 0)
"""Has the dtypes and the numbers of dimensions of every state."""

Argument = tuple[str, Tensor, tuple[int, ...], tuple[torch.dtype, ...]]
"""Name, tensor, and the shape and the dtypes that it may have."""


def check_logits(inputs: RelayStepInputs) -> None:
    """Raises ValueError for what the native library does not see; cheap, for it precedes every step."""
    logits, state, table, writer = inputs.logits, inputs.state, inputs.table, inputs.writer
    if writer is not TokenSource.STUDENT and writer is not TokenSource.TEACHER:
        raise ValueError(f"writer of relay_step must be TokenSource.STUDENT or TokenSource.TEACHER, not {writer!r}")
    if inputs.truncates is not True and inputs.truncates is not False:
        raise ValueError(f"truncates must be True or False, not {inputs.truncates!r}")
    if logits.dim() != 2 or logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"logits must be [N, V] fp32, bf16 or fp16, not {logits.dtype} {tuple(logits.shape)}")
    if logits.device != state.tokens.device:
        raise ValueError(f"logits are on {logits.device}, state is on {state.tokens.device}")
    (num_logits, vocab_size), num_rows = logits.shape, state.num_rows
    num_named = num_rows if inputs.rows is None else inputs.rows.numel()
    if num_logits != num_named:
        raise ValueError(f"logits are for {num_logits} rows, the step is for {num_named}")
    if num_named > num_rows:
        raise ValueError(f"rows are {num_named} and the state has {num_rows}: some occur more than once")
    if table is not None and table.next_state.dim() != 2:
        raise ValueError(f"table.next_state must be [states, vocabulary], not {tuple(table.next_state.shape)}")
    if table is not None and table.vocab_size != vocab_size:
        raise ValueError(f"table is for a vocabulary of {table.vocab_size}, logits have {vocab_size}")
    if table is not None and has_values(logits):
        check_transitions(table)


def check_step(inputs: RelayStepInputs, *, contiguous_for: str | None = None) -> None:
    """Raises ValueError unless the arguments are those of `relay_step`: shapes, dtypes and devices always, strides for
    the backend that is named, values where no device has to be waited for."""
    logits = inputs.logits
    if logits.shape[1] == 0:
        raise ValueError(f"logits must have a vocabulary, they are {tuple(logits.shape)}")
    for name, tensor, shape, dtypes in _arguments(inputs):
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes or tensor.device != logits.device:
            raise ValueError(
                f"{name} of relay_step must be {' or '.join(map(str, dtypes))} {shape} on {logits.device}, where the "
                f"logits are, not {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
        if name in WRITTEN and has_shared_elements(tensor):
            raise ValueError(f"{name} must not share elements between rows, its strides are {tensor.stride()}")
        if contiguous_for is not None and not tensor.is_contiguous():
            raise ValueError(
                f"{name} of relay_step must be contiguous for backend={contiguous_for!r}, its strides are "
                f"{tensor.stride()}"
            )
    if has_values(logits):
        _check_values(inputs)


def has_values(tensor: Tensor) -> bool:
    """True for a tensor whose values can be read without waiting for a device."""
    return tensor.device.type == "cpu" and type(tensor) is not FakeTensor


def check_transitions(table: CommandTable) -> None:
    """Raises ValueError unless the states and actions that `table`, on a CPU, refers to exist.

    A table is looked at once, and again after PyTorch has written to it.
    """
    for name, tensor, stop in (
        ("table.next_state", table.next_state, table.num_states),
        ("table.digit_action", table.digit_action, table.digit_scale.numel()),
    ):
        if tensor.device.type != "cpu" or tensor.is_floating_point():
            continue  # `check_step` names it.
        version = (0 if tensor.is_inference() else tensor._version, stop)
        if _checked_transitions.get(tensor) != version:
            _check_range(name, tensor, stop)
            _checked_transitions[tensor] = version


_checked_transitions: MutableMapping[Tensor, tuple[int, int]] = WeakIdKeyDictionary()
"""Tensors of command tables whose values are known to be in range: their versions, and the range."""


def _arguments(inputs: RelayStepInputs) -> Iterator[Argument]:
    """Every tensor of a call but the logits."""
    state, table, (num_logits, vocab_size) = inputs.state, inputs.command_table, inputs.logits.shape
    for field in fields(state):
        example = getattr(EMPTY, field.name)
        shape = (state.num_rows, state.max_tokens + 1)[: example.dim()]
        yield f"state.{field.name}", getattr(state, field.name), shape, (example.dtype,)
    if table is not None:
        cells, actions = (table.num_states, vocab_size), (table.digit_scale.numel(),)
        yield "table.next_state", table.next_state, cells, (torch.uint8,)
        yield "table.is_complete", table.is_complete, cells, (torch.bool,)
        yield "table.is_opening", table.is_opening, cells, (torch.bool,)
        yield "table.digit_action", table.digit_action, cells, (torch.int16, torch.int32)
        yield "table.digit_scale", table.digit_scale, actions, (torch.int64,)
        yield "table.digit_value", table.digit_value, actions, (torch.int64,)
    yield "eos_token_ids", inputs.eos_token_ids, (inputs.eos_token_ids.numel(),), INTEGERS
    if inputs.rows is not None:
        yield "rows", inputs.rows, (num_logits,), INTEGERS


def _check_values(inputs: RelayStepInputs) -> None:
    """Raises ValueError for values, on a CPU, by which a row that is about to be stepped cannot be."""
    state, table = inputs.state, inputs.command_table
    _check_range("eos_token_ids", inputs.eos_token_ids, inputs.logits.shape[1])
    rows = torch.arange(state.num_rows) if inputs.rows is None else inputs.rows
    _check_range("rows", rows, state.num_rows)
    values, counts = torch.unique(rows, return_counts=True)
    if (counts > 1).any():
        raise ValueError(f"rows must be distinct, they hold {int(values[counts.argmax()])} more than once")
    active = rows[state.status[rows] == int(inputs.writer)]
    _check_range("state.num_tokens", state.num_tokens[active], state.max_tokens)
    if table is not None:
        _check_range("state.command_state", state.command_state[active], table.num_states)
        _check_range("state.command_rule", state.command_rule[active], len(CommandRule))
    for name, most in MOST.items():
        _check_interval(f"state.{name}", getattr(state, name)[active], most)
    is_on = (state.top_k[active] > 0) | (state.top_p[active] < 1) | (state.min_p[active] > 0)
    if not inputs.truncates and is_on.any():
        raise ValueError("truncates is False, but a row of this step has top_k, top_p or min_p on")


def _check_range(name: str, values: Tensor, stop: int) -> None:
    """Raises ValueError unless all values lie in [0, stop)."""
    if values.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(values))
    if low < 0 or high >= stop:
        raise ValueError(f"{name} of relay_step must lie in [0, {stop}), it holds values from {low} to {high}")


def _check_interval(name: str, values: Tensor, most: float) -> None:
    """Raises ValueError unless all values are numbers in [0, most]."""
    if values.numel() == 0:
        return
    low, high = (bound.item() for bound in torch.aminmax(values))
    if not 0 <= low <= high <= most:
        raise ValueError(f"{name} must lie in [0, {most}], it holds values from {low} to {high}")
