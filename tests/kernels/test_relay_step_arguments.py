"""What every backend of the relay step refuses: by name, and before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from kernel_backends import HAS_CUDA, INTERPRETED
from relay_kernels.relay_step import CommandTable, RelayStepState, RowStatus, relay_step
from torch import Tensor

NUM_SLOTS, MAX_TOKENS, VOCAB_SIZE, NUM_STATES = 2, 6, 8, 3
FIELDS = [field.name for field in fields(RelayStepState)]


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and HAS_CUDA and not INTERPRETED else "cpu")


def make(device: torch.device) -> dict[str, object]:
    """A good call with every tensor that there can be."""
    state = RelayStepState.empty(NUM_SLOTS, MAX_TOKENS, device)
    state.status.fill_(int(RowStatus.STUDENT))
    state.token_limit.fill_(MAX_TOKENS)
    cells, rows = (NUM_STATES, VOCAB_SIZE), torch.ones(NUM_SLOTS, device=device)
    table = CommandTable(
        next_state=torch.zeros(cells, dtype=torch.uint8),
        is_complete=torch.zeros(cells, dtype=torch.bool),
        digit_action=torch.zeros(cells, dtype=torch.int16),
        digit_scale=torch.ones(2, dtype=torch.int64),
        digit_value=torch.zeros(2, dtype=torch.int64),
    )
    return {
        "logits": torch.randn(NUM_SLOTS, VOCAB_SIZE, device=device), "state": state, "writer": "student",
        "eos_token_ids": torch.tensor([1, 2], device=device), "slots": torch.tensor([0, 1], device=device),
        "table": table.to(device), "temperature": rows, "top_k": rows.long(), "top_p": rows, "min_p": rows,
        "uniforms": torch.rand(NUM_SLOTS, MAX_TOKENS, device=device),
    }  # fmt: skip


def change(call: dict[str, object], name: str, by: Callable) -> None:
    """Puts `by` of it in the place of an argument, or of a field of one ("state.tokens")."""
    argument, _, field = name.partition(".")
    record = call[argument]
    call[argument] = replace(record, **{field: by(getattr(record, field))}) if field else by(record)


def refuses(call: dict[str, object], backend: str, name: str) -> None:
    state = call["state"]
    before = {field: getattr(state, field).clone() for field in FIELDS if not getattr(state, field).is_meta}
    with pytest.raises(ValueError, match=rf"^{name.replace('.', '[.]')}\b"):
        relay_step(**call, backend=backend)
    for field, values in before.items():
        assert torch.equal(getattr(state, field), values), field


def test_the_call_that_is_spoilt_below_is_good(backend, device):
    call = make(device)
    relay_step(**call, backend=backend)
    assert call["state"].num_tokens.tolist() == [1, 1]


@pytest.mark.parametrize(
    "by", [Tensor.double, lambda x: x[:1], lambda x: x.to("meta")], ids=["dtype", "shape", "device"]
)
@pytest.mark.parametrize("name", [name for name in FIELDS if name != "tokens"])
def test_a_tensor_of_the_state_is_refused_by_name(backend, device, name, by):
    if backend == "native" and name == "num_arrived":
        pytest.skip("the library has no use for it")
    call = make(device)
    change(call, f"state.{name}", by)
    refuses(call, backend, f"state.{name}")


@pytest.mark.parametrize(
    "by", [Tensor.double, lambda x: x[..., :1], lambda x: x.to("meta")], ids=["dtype", "shape", "device"]
)
@pytest.mark.parametrize("name", ["is_complete", "digit_action", "digit_value"])
def test_a_tensor_of_the_table_is_refused_by_name(backend, device, name, by):
    call = make(device)
    change(call, f"table.{name}", by)
    refuses(call, backend, f"table.{name}")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("writer", lambda _: "nobody"),
        ("state.tokens", Tensor.double),
        ("logits", lambda x: x[0]),
        ("logits", lambda x: x[:1]),
        ("logits", Tensor.long),
        ("logits", lambda x: x.to("meta")),
        ("table", lambda x: replace(x, next_state=x.next_state[:, :7])),
        ("slots", Tensor.float),
        ("slots", lambda x: x[:, None]),
        ("slots", lambda x: x.to("meta")),
        ("eos_token_ids", Tensor.float),
        ("eos_token_ids", lambda x: x[:, None]),
        ("eos_token_ids", lambda x: x[0]),
        ("eos_token_ids", lambda x: x.to("meta")),
        ("uniforms", Tensor.double),
        ("uniforms", lambda x: x[:, :1]),
        ("uniforms", lambda x: x[0]),
        ("uniforms", lambda x: x.to("meta")),
        ("temperature", lambda x: x[:1]),
        ("temperature", Tensor.double),
        ("temperature", lambda _: -1.0),
        ("temperature", lambda _: float("nan")),
        ("top_k", lambda x: x[:, None]),
        ("top_k", lambda _: -1),
        ("top_p", lambda x: x.to("meta")),
        ("top_p", lambda _: 1.5),
        ("min_p", lambda x: x[0]),
        ("min_p", lambda _: -0.5),
        ("top_k", lambda _: 1.5),
        ("top_k", lambda _: float("inf")),
        ("top_k", lambda _: 10**30),
        ("top_p", lambda _: float("nan")),
        ("state.num_tokens", lambda x: x[:1].expand(NUM_SLOTS)),
        ("state.tokens", lambda x: x[:1].expand(NUM_SLOTS, -1)),
    ],
)
def test_an_argument_is_refused_by_name(backend, device, name, by):
    call = make(device)
    change(call, name, by)
    refuses(call, backend, name)


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("slots", lambda x: x + 1),
        ("slots", lambda x: x - 1),
        ("eos_token_ids", lambda x: x + VOCAB_SIZE - 2),
        ("eos_token_ids", lambda x: x - 2),
        ("state.num_tokens", lambda x: x + MAX_TOKENS),
        ("state.num_tokens", lambda x: x - 1),
        ("state.command_state", lambda x: x + NUM_STATES),
        ("state.command_state", lambda x: x - 2**62),
        ("slots", lambda x: x * 0),
        ("slots", lambda x: (x * 0 + 1).int()),
        ("slots", lambda x: x + 2**62),
        ("state.num_tokens", lambda x: x + 2**63 - 1),
        ("table.digit_action", lambda x: x + 30_000),
        ("table.digit_action", lambda x: x.int() - 2**31),
        ("table.digit_action", lambda x: x + 2),
        ("table.next_state", lambda x: x + NUM_STATES),
        ("temperature", lambda x: x * float("nan")),
        ("temperature", lambda x: -x),
        ("top_k", lambda x: -x),
        ("top_k", lambda x: x + 0.5),
        ("top_p", lambda x: x + 1.0),
        ("min_p", lambda x: x * float("inf")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_where_it_can_be_seen(backend, device, name, by):
    if device.type == "cuda":
        pytest.skip("the step never waits for the device")
    call = make(device)
    change(call, name, by)
    refuses(call, backend, name)


def test_more_rows_than_slots_are_refused(backend, device):
    call = make(device)
    rows = torch.tensor([0, 1, 0], device=device)
    call |= {"logits": torch.randn(3, VOCAB_SIZE, device=device), "slots": rows}
    call |= {name: torch.ones(3, device=device) for name in ("temperature", "top_k", "top_p", "min_p")}
    refuses(call, backend, "slots")


def test_a_table_is_looked_at_again_when_it_was_written_to(backend, device):
    if device.type == "cuda":
        pytest.skip("the step never waits for the device")
    call = make(device)
    relay_step(**call, backend=backend)
    call["table"].digit_action[0, 3] = 7
    refuses(call, backend, "table.digit_action")
    call["table"].digit_action[0, 3] = 1
    relay_step(**call, backend=backend)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slots_may_be_of_either_integer_type(backend, device, dtype):
    call = make(device)
    call["slots"] = torch.tensor([1, 0], dtype=dtype, device=device)
    relay_step(**call, backend=backend)
    assert call["state"].num_tokens.tolist() == [1, 1]


def test_a_number_beyond_any_command_wraps_around_as_in_pytorch(backend, device):
    call = make(device)
    call["table"].digit_scale.fill_(10**9)
    call["state"].command_n.fill_(2**62 + 1)
    relay_step(**call, backend=backend)
    expected = (torch.tensor(2**62 + 1) * 10**9).clamp(max=10**9 - 1)
    assert call["state"].command_n.tolist() == [expected] * NUM_SLOTS


def test_logits_without_a_vocabulary_are_refused_by_name(backend, device):
    call = make(device)
    call["logits"], call["table"] = call["logits"][:, :0], None
    refuses(call, backend, "logits")


def test_a_row_of_somebody_else_may_be_full(backend, device):
    call = make(device)
    state = call["state"]
    state.num_tokens[0], state.status[0] = MAX_TOKENS, int(RowStatus.LENGTH)
    relay_step(**call, backend=backend)
    assert state.num_tokens.tolist() == [MAX_TOKENS, 1]


@pytest.mark.parametrize("name", ["state.tokens", "state.log_probs", "table.next_state", "uniforms"])
def test_strides_that_a_backend_does_not_take_are_refused_by_name(backend, device, name):
    call = make(device)
    change(call, name, lambda x: x.T.contiguous().T)
    if backend != "reference":
        return refuses(call, backend, name)
    plain = make(device)
    for each in (call, plain):
        each["temperature"], each["logits"] = 0.0, torch.eye(NUM_SLOTS, VOCAB_SIZE)
        relay_step(**each, backend=backend)
    for field in FIELDS:
        assert torch.equal(getattr(call["state"], field), getattr(plain["state"], field)), field
