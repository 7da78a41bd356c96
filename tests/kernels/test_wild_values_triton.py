"""Triton's kernels stay inside their tensors whatever values the host cannot look at on a CUDA device."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from relay_kernels.decode_attention.triton_impl import append_kv_triton, decode_attention_triton
from relay_kernels.relay_step import CommandRule, CommandTable, RelayStepInputs, RelayStepState, RowStatus, TokenSource
from relay_kernels.relay_step.triton_impl import relay_step_triton

WILD = [-5, 2**31, 2**62, -(2**63)]
NUM_ROWS, MAX_TOKENS, VOCAB_SIZE, NUM_STATES = 3, 6, 8, 3


@pytest.mark.parametrize("wild", WILD)
@pytest.mark.parametrize("name", ["cache_seqlens", "block_table", "num_new"])
@pytest.mark.parametrize("num_tokens", [1, 2])
def test_attention_leaves_out_a_row_that_leads_out_of_the_cache(device, name, wild, num_tokens):
    generator = torch.Generator().manual_seed(0)
    caches = [torch.randn(3, 16, 2, 8, generator=generator).to(device) for _ in range(2)]
    new = [torch.randn(2, num_tokens, 2, 8, generator=generator).to(device) for _ in range(2)]
    query = torch.randn(2, num_tokens, 4, 8, generator=generator).to(device)
    integers = {"cache_seqlens": [3, 4], "num_new": [num_tokens, 1], "block_table": [[2], [0]]}
    integers[name][1] = [wild] if name == "block_table" else wild
    rows = [torch.tensor(values, device=device) for values in integers.values()]
    before = [cache.clone() for cache in caches]
    output = decode_attention_triton(query, *caches, rows[0], *new, *rows[1:], 0.3)
    append_kv_triton(*caches, *new, *rows)
    assert output[0].all()
    if name != "num_new" or wild < 0:
        assert not output[1].any() or (name == "cache_seqlens" and wild > 0)
        assert all(torch.equal(cache[:2], old[:2]) for cache, old in zip(caches, before, strict=True))
    assert all(torch.equal(cache[2, 3 : 3 + num_tokens], each[0]) for cache, each in zip(caches, new, strict=True))


@pytest.mark.parametrize("wild", WILD)
def test_a_block_that_does_not_exist_is_neither_read_nor_written(device, wild):
    generator = torch.Generator().manual_seed(0)
    caches = [torch.randn(3, 16, 2, 8, generator=generator).to(device) for _ in range(2)]
    new = [torch.randn(2, 1, 2, 8, generator=generator).to(device) for _ in range(2)]
    query = torch.randn(2, 1, 4, 8, generator=generator).to(device)
    lengths, table = torch.tensor([18, 18], device=device), torch.tensor([[0, 1], [2, wild]], device=device)
    before = [cache.clone() for cache in caches]
    output = decode_attention_triton(query, *caches, lengths, *new, None, table, 0.3)
    append_kv_triton(*caches, *new, lengths, None, table)
    assert output.isfinite().all()
    for cache, old, each in zip(caches, before, new, strict=True):
        assert torch.equal(cache[1, 2], each[0, 0])
        cache[1, 2] = old[1, 2]
        assert torch.equal(cache, old)


def make_state(device: torch.device) -> RelayStepState:
    state = RelayStepState.empty(NUM_ROWS, MAX_TOKENS, device)
    state.status.fill_(int(RowStatus.STUDENT))
    state.token_limit.fill_(MAX_TOKENS)
    state.command_rule.fill_(int(CommandRule.MASK_OPEN))
    return state


def step(state: RelayStepState, rows: list[int], action: int, device: torch.device) -> None:
    cells = (NUM_STATES, VOCAB_SIZE)
    table = CommandTable(
        next_state=torch.ones(cells, dtype=torch.uint8, device=device),
        is_complete=torch.zeros(cells, dtype=torch.bool, device=device),
        is_opening=torch.zeros(cells, dtype=torch.bool, device=device),
        digit_action=torch.full(cells, action, dtype=torch.int32, device=device),
        digit_scale=torch.full((2,), 10, device=device),
        digit_value=torch.zeros(2, dtype=torch.int64, device=device),
    )
    logits = torch.randn(len(rows), VOCAB_SIZE, device=device)
    items, eos = torch.tensor(rows, device=device), torch.tensor([], dtype=torch.int64, device=device)
    relay_step_triton(RelayStepInputs(logits, state, TokenSource.STUDENT, eos, items, table, truncates=True))


@pytest.mark.parametrize("wild", WILD)
@pytest.mark.parametrize("name", ["rows", "num_tokens", "command_state"])
def test_a_step_leaves_a_row_alone_that_leads_out_of_the_state(device, name, wild):
    state, rows = make_state(device), [2, 0]
    if name == "rows":
        rows[1] = wild
    else:
        getattr(state, name)[0] = wild
    before = {field.name: getattr(state, field.name).clone() for field in fields(state)}
    step(state, rows, 1, device)
    assert state.num_tokens[2] == 1
    for field, values in before.items():
        assert torch.equal(getattr(state, field)[:2], values[:2]), field


@pytest.mark.parametrize("action", [-1, 2, 2**31 - 1, -(2**31)])
def test_an_action_that_the_table_does_not_have_keeps_n(device, action):
    state = make_state(device)
    state.command_n.fill_(7)
    step(state, [0, 1, 2], action, device)
    assert state.command_n.tolist() == [7, 7, 7]
    assert state.command_state.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "wild"),
    [
        *(("temperature", value) for value in (float("nan"), float("inf"), -1.0, 1e-38)),
        *(("top_k", value) for value in (-1, 2**62, -(2**63))),
        *(("top_p", value) for value in (float("nan"), float("-inf"), -1.0, 7.0)),
        *(("min_p", value) for value in (float("nan"), float("inf"), -1.0, 7.0)),
        ("command_rule", 255),
        ("seed", -(2**63)),
    ],
)
def test_a_sampling_value_out_of_range_gives_its_row_some_token_and_other_rows_theirs(device, name, wild):
    state, plain = make_state(device), make_state(device)
    getattr(state, name)[1] = wild
    for each in (plain, state):
        torch.manual_seed(0)
        step(each, [0, 1, 2], 1, device)
    assert state.num_tokens.tolist() == [1, 1, 1]
    assert 0 <= int(state.tokens[1, 0]) < VOCAB_SIZE
    for field in fields(state):
        ours, theirs = getattr(state, field.name), getattr(plain, field.name)
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]]), field.name
        assert ours.dim() == 1 or torch.equal(ours[1, 1:], theirs[1, 1:]), field.name
