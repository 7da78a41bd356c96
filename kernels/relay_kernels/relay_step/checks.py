"""Argument checks of the relay step: each raises one sentence that names the argument.

Shapes: N rows of logits, S slots, V vocabulary, L longest completion, E end-of-sequence tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, MutableMapping
from dataclasses import fields

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from relay_kernels.checks import check_slots, has_shared_elements
from relay_kernels.relay_step.commands import CommandTable
from relay_kernels.relay_step.state import RelayStepState, Writer

INTEGERS = (torch.int64, torch.int32)
NUMBERS = (torch.float32, *INTEGERS)
MAX_TOP_K = 2**31 - 1
"""Beyond any vocabulary; Triton has 32 bits for it."""
WRITTEN = {
    f"state.{name}"
    for name in ("tokens", "token_source", "log_probs", "sampling_log_probs", "last_token", "num_tokens", "status")
} | {"state.command_state", "state.command_n"}
EMPTY = RelayStepState.empty(0, 0)
"""Has the dtypes and the numbers of dimensions of every state."""

Argument = tuple[str, Tensor, tuple[int, ...], tuple[torch.dtype, ...]]
"""Name, tensor, and the shape and the dtypes that it may have."""


def check_logits(
    logits: Tensor, state: RelayStepState, writer: str, slots: Tensor | None, table: CommandTable | None, seed: int
) -> None:
    """Raises ValueError for what the native library does not see; cheap, for it precedes every step."""
    if not hasattr(seed, "__index__"):
        raise ValueError(f"seed must be an integer, not {seed!r}")
    if writer not in ("student", "teacher"):
        raise ValueError(f"writer={writer!r} of relay_step is unknown; it is 'student' or 'teacher'")
    if logits.dim() != 2 or logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"logits must be [N, V] fp32, bf16 or fp16, not {logits.dtype} {tuple(logits.shape)}")
    if logits.device != state.tokens.device:
        raise ValueError(f"logits are on {logits.device}, state is on {state.tokens.device}")
    num_rows = state.num_slots if slots is None else slots.numel()
    if logits.shape[0] != num_rows:
        raise ValueError(f"logits have {logits.shape[0]} rows for {num_rows} slots")
    if num_rows > state.num_slots:
        raise ValueError(f"slots are {num_rows} and the state has {state.num_slots}: some occur more than once")
    if table is not None and table.next_state.dim() != 2:
        raise ValueError(f"table.next_state must be [states, vocabulary], not {tuple(table.next_state.shape)}")
    if table is not None and table.vocab_size != logits.shape[1]:
        raise ValueError(f"table is for a vocabulary of {table.vocab_size}, logits have {logits.shape[1]}")
    if table is not None and logits.device.type == "cpu":
        check_transitions(table)


def check_step(
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
    uniforms: Tensor | None,
    *,
    contiguous_for: str | None = None,
) -> None:
    """Raises ValueError unless the arguments are those of `relay_step`: shapes, dtypes, devices and numbers always,
    strides for the backend that is named, values in tensors where no device has to be waited for."""
    if logits.shape[1] == 0:
        raise ValueError(f"logits must have a vocabulary, they are {tuple(logits.shape)}")
    parameters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    for name, value in parameters.items():
        if not isinstance(value, Tensor):
            _check_parameter(name, value)
    others = parameters | {"slots": slots, "eos_token_ids": eos_token_ids, "uniforms": uniforms}
    for name, tensor, shape, dtypes in _arguments(logits, state, table, others):
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes or tensor.device != logits.device:
            raise ValueError(
                f"{name} of relay_step must be {' or '.join(map(str, dtypes))} {shape} on {logits.device}, where the "
                f"logits are, not {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
        if name in WRITTEN and has_shared_elements(tensor):
            raise ValueError(f"{name} must not share elements between slots, its strides are {tensor.stride()}")
        if contiguous_for is not None and not tensor.is_contiguous():
            raise ValueError(
                f"{name} of relay_step must be contiguous for backend={contiguous_for!r}, its strides are "
                f"{tensor.stride()}"
            )
    if logits.device.type == "cpu":
        _check_values(state, slots, writer, table, eos_token_ids, logits.shape[1])
        for name, value in parameters.items():
            if isinstance(value, Tensor):
                for number in torch.unique(value).tolist():
                    _check_parameter(name, number)


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


def _check_parameter(name: str, value: float) -> None:
    """Raises ValueError for a value that the sampling parameter `name` cannot have."""
    most = 1.0 if name in ("top_p", "min_p") else math.inf
    if isinstance(value, int) and value >= 2**63:
        raise ValueError(f"{name} must be below 2^63, not {value}")
    if not 0.0 <= value <= most:
        raise ValueError(f"{name} must lie in [0, {most}], not {value}")
    if name == "top_k" and (value > MAX_TOP_K or value != int(value)):
        raise ValueError(f"top_k must be a whole number up to {MAX_TOP_K}, not {value}")


def _arguments(
    logits: Tensor, state: RelayStepState, table: CommandTable | None, others: dict[str, float | Tensor | None]
) -> Iterator[Argument]:
    """Every tensor of a call but the logits."""
    num_rows, vocab_size = logits.shape
    for field in fields(state):
        example = getattr(EMPTY, field.name)
        shape = (state.num_slots, state.max_tokens + 1)[: example.dim()]
        yield f"state.{field.name}", getattr(state, field.name), shape, (example.dtype,)
    if table is not None:
        cells, actions = (table.num_states, vocab_size), (table.digit_scale.numel(),)
        yield "table.next_state", table.next_state, cells, (torch.uint8,)
        yield "table.is_complete", table.is_complete, cells, (torch.bool,)
        yield "table.digit_action", table.digit_action, cells, (torch.int16, torch.int32)
        yield "table.digit_scale", table.digit_scale, actions, (torch.int64,)
        yield "table.digit_value", table.digit_value, actions, (torch.int64,)
    for name, value in others.items():
        if not isinstance(value, Tensor):
            continue
        if name == "uniforms":
            yield name, value, (state.num_slots, state.max_tokens), (torch.float32,)
        elif name == "eos_token_ids":
            yield name, value, (value.numel(),), INTEGERS
        else:
            yield name, value, (num_rows,), INTEGERS if name == "slots" else NUMBERS


def _check_values(
    state: RelayStepState,
    slots: Tensor | None,
    writer: Writer,
    table: CommandTable | None,
    eos_token_ids: Tensor,
    vocab_size: int,
) -> None:
    """What the rows that are about to be written to hold."""
    _check_range("eos_token_ids", eos_token_ids, vocab_size)
    if slots is None:
        slots = torch.arange(state.num_slots)
    check_slots(slots, state.num_slots)
    active = slots[state.status[slots] == int(writer)]
    _check_range("state.num_tokens", state.num_tokens[active], state.max_tokens)
    if table is not None:
        _check_range("state.command_state", state.command_state[active], table.num_states)


def _check_range(name: str, values: Tensor, stop: int) -> None:
    if values.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(values))
    if low < 0 or high >= stop:
        raise ValueError(f"{name} of relay_step must lie in [0, {stop}), it holds values from {low} to {high}")
