"""What every backend of the relay step refuses: by name, and before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from kernel_backends import HAS_CUDA, INTERPRETED
from relay_kernels.relay_step import CommandTable, RelayStepState, RowStatus, TokenSource, relay_step
from torch import Tensor

NUM_ROWS, MAX_TOKENS, VOCAB_SIZE, NUM_STATES = 2, 6, 8, 3
FIELDS = [field.name for field in fields(RelayStepState)]


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and HAS_CUDA and not INTERPRETED else "cpu")


def make(device: torch.device) -> dict[str, object]:
    """A good call with every tensor that there can be."""
    state = RelayStepState.empty(NUM_ROWS, MAX_TOKENS, device)
    state.status.fill_(int(RowStatus.STUDENT))
    state.token_limit.fill_(MAX_TOKENS)
    state.top_k.fill_(1)
    state.min_p.fill_(0.5)
    cells = (NUM_STATES, VOCAB_SIZE)
    table = CommandTable(
        next_state=torch.zeros(cells, dtype=torch.uint8),
        is_complete=torch.zeros(cells, dtype=torch.bool),
        is_opening=torch.zeros(cells, dtype=torch.bool),
        digit_action=torch.zeros(cells, dtype=torch.int16),
        digit_scale=torch.ones(2, dtype=torch.int64),
        digit_value=torch.zeros(2, dtype=torch.int64),
    )
    return {
        "logits": torch.randn(NUM_ROWS, VOCAB_SIZE, device=device),
        "state": state,
        "writer": TokenSource.STUDENT,
        "eos_token_ids": torch.tensor([1, 2], device=device),
        "rows": torch.tensor([0, 1], device=device),
        "table": table.to(device),
        "truncates": True,
    }


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
        torch.testing.assert_close(getattr(state, field), values, rtol=0, atol=0, equal_nan=True, msg=field)


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
@pytest.mark.parametrize("name", ["is_complete", "is_opening", "digit_action", "digit_value"])
def test_a_tensor_of_the_table_is_refused_by_name(backend, device, name, by):
    call = make(device)
    change(call, f"table.{name}", by)
    refuses(call, backend, f"table.{name}")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("writer", lambda _: "nobody"),
        ("writer", lambda _: "student"),
        ("writer", lambda _: TokenSource.PROMPT),
        ("truncates", lambda _: 1),
        ("state.tokens", Tensor.double),
        ("logits", lambda x: x[0]),
        ("logits", lambda x: x[:1]),
        ("logits", Tensor.long),
        ("logits", lambda x: x.to("meta")),
        ("table", lambda x: replace(x, next_state=x.next_state[:, :7])),
        ("rows", Tensor.float),
        ("rows", lambda x: x[:, None]),
        ("rows", lambda x: x.to("meta")),
        ("eos_token_ids", Tensor.float),
        ("eos_token_ids", lambda x: x[:, None]),
        ("eos_token_ids", lambda x: x[0]),
        ("eos_token_ids", lambda x: x.to("meta")),
        ("state.top_k", Tensor.float),
        ("state.top_k", Tensor.int),
        ("state.command_rule", Tensor.bool),
        ("state.command_rule", Tensor.long),
        ("state.ends_on_teacher_eos", Tensor.byte),
        ("table.is_opening", Tensor.byte),
        ("state.seed", lambda x: x[:, None]),
        ("state.num_tokens", lambda x: x[:1].expand(NUM_ROWS)),
        ("state.tokens", lambda x: x[:1].expand(NUM_ROWS, -1)),
    ],
)
def test_an_argument_is_refused_by_name(backend, device, name, by):
    call = make(device)
    change(call, name, by)
    refuses(call, backend, name)


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("rows", lambda x: x + 1),
        ("rows", lambda x: x - 1),
        ("eos_token_ids", lambda x: x + VOCAB_SIZE - 2),
        ("eos_token_ids", lambda x: x - 2),
        ("state.num_tokens", lambda x: x + MAX_TOKENS),
        ("state.num_tokens", lambda x: x - 1),
        ("state.command_state", lambda x: x + NUM_STATES),
        ("state.command_state", lambda x: x - 2**62),
        ("rows", lambda x: x * 0),
        ("rows", lambda x: (x * 0 + 1).int()),
        ("rows", lambda x: x + 2**62),
        ("state.num_tokens", lambda x: x + 2**63 - 1),
        ("table.digit_action", lambda x: x + 30_000),
        ("table.digit_action", lambda x: x.int() - 2**31),
        ("table.digit_action", lambda x: x + 2),
        ("table.next_state", lambda x: x + NUM_STATES),
        ("state.temperature", lambda x: x * float("nan")),
        ("state.temperature", lambda x: -x),
        ("state.temperature", lambda x: x * torch.tensor([1.0, float("nan")])),
        ("state.top_k", lambda x: -x),
        ("state.top_k", lambda x: x - 2**63),
        ("state.top_p", lambda x: x + 0.001),
        ("state.top_p", lambda x: -x),
        ("state.top_p", lambda x: x * float("nan")),
        ("state.min_p", lambda x: x * 3.0),
        ("state.min_p", lambda x: x * float("inf")),
        ("state.min_p", lambda x: -x),
        ("state.command_rule", lambda x: x + 4),
        ("state.command_rule", lambda x: x + 255),
    ],
)
def test_a_value_out_of_range_is_refused_by_name_where_it_can_be_seen(backend, device, name, by):
    if device.type == "cuda":
        pytest.skip("the step never waits for the device")
    call = make(device)
    change(call, name, by)
    refuses(call, backend, name)


def test_more_rows_than_the_state_has_are_refused(backend, device):
    call = make(device)
    rows = torch.tensor([0, 1, 0], device=device)
    call |= {"logits": torch.randn(3, VOCAB_SIZE, device=device), "rows": rows}
    refuses(call, backend, "rows")


@pytest.mark.parametrize(("name", "value"), [("top_k", 3), ("top_p", 0.9), ("min_p", 0.1)])
def test_a_truncated_row_is_refused_when_the_caller_promised_none(backend, device, name, value):
    if device.type == "cuda":
        pytest.skip("the step never waits for the device")
    call = make(device) | {"truncates": False}
    call["logits"][:, [1, 2]] = -1e4  # no row ends
    state = call["state"]
    state.top_k.zero_()
    state.min_p.zero_()
    relay_step(**call, backend=backend)
    getattr(state, name)[1] = value
    refuses(call, backend, "truncates")
    state.status[1] = int(RowStatus.TEACHER)
    relay_step(**call, backend=backend)


def test_values_of_a_row_that_is_left_alone_may_be_anything(backend, device):
    call = make(device)
    state = call["state"]
    state.status[0] = int(RowStatus.EMPTY)
    state.temperature[0], state.top_k[0], state.top_p[0], state.min_p[0] = float("nan"), -3, 7.0, -1.0
    state.command_rule[0], state.command_state[0], state.command_n[0] = 77, -(2**63), 2**63 - 1
    relay_step(**call, backend=backend)
    assert state.num_tokens.tolist() == [0, 1]


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
def test_rows_may_be_of_either_integer_type(backend, device, dtype):
    call = make(device)
    call["rows"] = torch.tensor([1, 0], dtype=dtype, device=device)
    relay_step(**call, backend=backend)
    assert call["state"].num_tokens.tolist() == [1, 1]


def test_a_number_beyond_any_command_wraps_around_as_in_pytorch(backend, device):
    call = make(device)
    call["table"].digit_scale.fill_(10**9)
    call["state"].command_n.fill_(2**62 + 1)
    relay_step(**call, backend=backend)
    expected = (torch.tensor(2**62 + 1) * 10**9).clamp(max=10**9 - 1)
    assert call["state"].command_n.tolist() == [expected] * NUM_ROWS


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


@pytest.mark.parametrize("name", ["state.tokens", "state.log_probs", "table.next_state", "table.is_opening"])
def test_strides_that_a_backend_does_not_take_are_refused_by_name(backend, device, name):
    call = make(device)
    change(call, name, lambda x: x.T.contiguous().T)
    if backend != "reference":
        return refuses(call, backend, name)
    plain = make(device)
    for each in (call, plain):
        each["state"].temperature.zero_()
        each["logits"] = torch.eye(NUM_ROWS, VOCAB_SIZE)
        relay_step(**each, backend=backend)
    for field in FIELDS:
        assert torch.equal(getattr(call["state"], field), getattr(plain["state"], field)), field
