"""Every row of a relay step has sampling parameters, a seed and a command rule of its own, in every backend."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import torch
from kernel_backends import HAS_CUDA, INTERPRETED
from relay_kernels.relay_step import CommandRule, CommandTable, RelayStepState, RowStatus, TokenSource, relay_step
from small_vocabulary import EOS, VOCAB_SIZE, VOCABULARY, small_protocol, spell
from step_state import copied, make_logits, make_state, make_table, put
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

MIXED = {
    "temperature": [1.0, 0.0, 0.5, 2.0, 0.0, 1.3, 0.8, 1.0, 0.0, 1.0],
    "top_k": [0, 5, 3, 50, 0, 0, 2**40, 0, 1, 4],
    "top_p": [1.0, 0.9, 0.5, 1.0, 1.0, 0.8, 1.0, 1.0, 1.0, 0.0],
    "min_p": [0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.05, 0.0, 1.0, 0.0],
    "seed": [0, 1, -1, 2**63 - 1, -(2**63), 7, 7, 2**40, 0, 3],
    "command_rule": [0, 1, 2, 3, 3, 2, 1, 0, 2, 3],
    "ends_on_teacher_eos": [0, 1, 1, 0, 1, 0, 0, 1, 1, 0],
}
NUM_ROWS = len(MIXED["seed"])
DTYPE = torch.bfloat16 if INTERPRETED else torch.float32
"""The search for a threshold takes half as many probes for 16-bit logits."""
LOG_PROBS = ("log_probs", "sampling_log_probs")
CALL = re.compile(rb"<call>[ \t\n\r\f\v]*0*[1-9][0-9]*[ \t\n\r\f\v]*</call>")


@pytest.fixture
def device(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and HAS_CUDA and not INTERPRETED else "cpu")


def row_of(state: RelayStepState, row: int) -> RelayStepState:
    """A state of that row alone."""
    return RelayStepState(**{field.name: getattr(state, field.name)[row : row + 1].clone() for field in fields(state)})


def assert_same_row(one: RelayStepState, row: int, other: RelayStepState, other_row: int) -> None:
    for field in fields(RelayStepState):
        ours, theirs = getattr(one, field.name)[row], getattr(other, field.name)[other_row]
        if ours.dim() == 1:
            ours, theirs = ours[:-1], theirs[:-1]  # the last column is scratch
        exact = {} if field.name in LOG_PROBS else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(ours, theirs, **exact, msg=f"{field.name} of row {row}")


@pytest.mark.parametrize("writer", [TokenSource.STUDENT, TokenSource.TEACHER])
def test_a_row_of_a_mixed_batch_is_written_as_it_is_alone(backend, device, writer):
    """Alone in a state of its own, and alone among the rows of a call; half of the vocabulary ends a row."""
    vocab_size = 300
    state = put(make_state(NUM_ROWS, device, status=writer), **MIXED)
    logits, table = make_logits((NUM_ROWS, vocab_size), device, DTYPE), make_table(vocab_size, device)
    options = {
        "writer": writer, "table": table, "backend": backend,
        "eos_token_ids": torch.arange(0, vocab_size, 2, device=device),
    }  # fmt: skip
    together = copied(state, device)
    relay_step(logits, together, **options)
    is_cut = (state.top_k > 0) & (state.top_k < vocab_size) | (state.top_p < 1) | (state.min_p > 0)
    for row in range(NUM_ROWS):
        alone, one_of_many = row_of(state, row), copied(state, device)
        line, truncates = logits[row : row + 1], bool(is_cut[row] or state.top_k[row])
        relay_step(line, alone, truncates=truncates, **options)
        relay_step(line, one_of_many, rows=torch.tensor([row], device=device), **options)
        assert_same_row(alone, 0, together, row)
        assert_same_row(one_of_many, row, together, row)
        others = [other for other in range(NUM_ROWS) if other != row]
        assert torch.equal(one_of_many.num_tokens[others], state.num_tokens[others])


def test_a_row_that_is_neither_cut_nor_masked_has_one_log_probability_in_a_mixed_batch(backend, device):
    state = put(make_state(NUM_ROWS, device), **MIXED)
    put(state, num_tokens=0, token_limit=5)
    logits, eos = make_logits((NUM_ROWS, 300), device), torch.tensor([0], device=device)
    relay_step(
        logits, state, writer=TokenSource.STUDENT, eos_token_ids=eos, table=make_table(300, device), backend=backend
    )
    log_prob, sampling_log_prob = state.log_probs[:, 0], state.sampling_log_probs[:, 0]
    assert torch.equal(log_prob[[0, 7]], sampling_log_prob[[0, 7]])
    assert (sampling_log_prob[[2, 3, 5, 9]] > log_prob[[2, 3, 5, 9]]).all()
    assert not sampling_log_prob[[1, 4, 8]].any()
    assert (log_prob < 0).all()


def completes(text: bytes) -> bool:
    return CALL.search(text) is not None


def is_allowed(rule: CommandRule, text: bytes, token: int) -> bool:
    """The definition of the rules on bytes: may the student write `token` behind `text`, what it wrote since a call?"""
    longer = text + (VOCABULARY[token] or b"\xff")
    if rule >= CommandRule.MASK_CLOSE and completes(longer):
        return False
    opened = longer.count(b"<call>") > text.count(b"<call>")
    return not (rule == CommandRule.MASK_OPEN and opened)


def student_by_definition(rule: CommandRule, logits: Tensor) -> tuple[list[int], RowStatus]:
    """A greedy student's tokens over [T, V] logits, and its status then."""
    text, written = b"", []
    for row in logits.tolist():
        token = max((t for t in range(VOCAB_SIZE) if is_allowed(rule, text, t)), key=lambda t: (row[t], -t))
        written.append(token)
        text += VOCABULARY[token] or b"\xff"
        if token == EOS:
            return written, RowStatus.STOP
        if completes(text):
            if rule == CommandRule.CALL:
                return written, RowStatus.CALLED
            text = b""
    return written, RowStatus.STUDENT


def test_the_four_command_rules_do_what_a_search_in_the_bytes_says(backend, device):
    num_each, num_steps = 5, 14
    rules = [rule for rule in CommandRule for _ in range(num_each)]
    script = (spell("x<call>12</call>y<call>3</call>") * 2)[:num_steps]
    logits = torch.randn(num_steps, num_each, VOCAB_SIZE, generator=torch.Generator().manual_seed(2)) * 1.5
    logits[torch.arange(num_steps), :, script] += 4.0  # mostly the script, and whatever comes next where it is banned
    logits[:, :, EOS] -= 3.0
    state = RelayStepState.empty(len(rules), num_steps + 1, device)
    put(state, status=int(RowStatus.STUDENT), token_limit=num_steps + 1, temperature=0.0, command_rule=rules)
    table, eos = small_protocol().table.to(device), torch.tensor([EOS], device=device)
    for line in logits:
        batch = line.repeat(len(CommandRule), 1).to(device)
        relay_step(
            batch, state, writer=TokenSource.STUDENT, eos_token_ids=eos, table=table, truncates=False, backend=backend
        )
    texts: dict[CommandRule, list[bytes]] = {rule: [] for rule in CommandRule}
    for row, rule in enumerate(rules):
        written, status = student_by_definition(rule, logits[:, row % num_each])
        assert state.tokens[row, : int(state.num_tokens[row])].tolist() == written, (row, rule)
        assert state.status[row] == status, (row, rule)
        texts[rule].append(b"".join(VOCABULARY[token] or b"\xff" for token in written))
    assert any(map(completes, texts[CommandRule.CALL]))
    assert any(len(CALL.findall(text)) == 2 for text in texts[CommandRule.TEXT])
    assert not any(map(completes, texts[CommandRule.MASK_CLOSE] + texts[CommandRule.MASK_OPEN]))
    assert any(b"<call>" in text for text in texts[CommandRule.MASK_CLOSE])
    assert not any(b"<call>" in text for text in texts[CommandRule.MASK_OPEN])


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.9)])
def test_what_is_left_is_drawn_from_when_banned_tokens_hold_all_the_probability(backend, device, temperature, top_p):
    """The log-probabilities of what is left lie far below the least that fp32 can tell from zero."""
    num_rows, vocab_size = 12, 50
    rules = [CommandRule.MASK_CLOSE, CommandRule.MASK_OPEN] * (num_rows // 2)
    table = make_table(vocab_size, device)
    table.is_complete[0, -1] = True  # the last token is what a draw from nothing would take
    state = make_state(num_rows, device, temperature=temperature, top_p=top_p, command_rule=rules)
    put(state, num_tokens=0, token_limit=5)
    is_opening = (torch.tensor(rules, device=device) == CommandRule.MASK_OPEN)[:, None] & table.is_opening[0]
    banned = table.is_complete[0] | is_opening  # [B, V]
    logits = torch.where(banned, 900.0, make_logits((num_rows, vocab_size), device)).to(DTYPE)
    eos = torch.tensor([], dtype=torch.int64, device=device)
    relay_step(logits, state, writer=TokenSource.STUDENT, eos_token_ids=eos, table=table, backend=backend)
    token = state.last_token[:, None]
    assert not banned.gather(1, token).any()
    assert len(set(token[:, 0].tolist())) > num_rows // 3
    assert (state.log_probs[:, 0] < -800).all()
    share = logits.float().masked_fill(banned, -torch.inf).log_softmax(-1).gather(1, token)[:, 0]
    if temperature == 0:
        assert not state.sampling_log_probs[:, 0].any()
    elif top_p == 1:
        torch.testing.assert_close(state.sampling_log_probs[:, 0], share, rtol=1e-4, atol=1e-4)
    else:
        assert (state.sampling_log_probs[:, 0] > share - 1e-4).all()


@pytest.mark.parametrize("writer", [TokenSource.STUDENT, TokenSource.TEACHER])
def test_fake_tensors_run_by_definition_and_no_other_way(writer):
    table = small_protocol().table
    with FakeTensorMode() as mode:
        state = RelayStepState.empty(3, 4)
        options = {
            "writer": writer, "eos_token_ids": torch.tensor([EOS]), "table": CommandTable(
                **{field.name: mode.from_tensor(getattr(table, field.name)) for field in fields(table)}
            ),
        }  # fmt: skip
        relay_step(torch.empty(3, VOCAB_SIZE), state, **options)
        with pytest.raises(RuntimeError, match="backend='native' of relay_step cannot run: fake tensors have"):
            relay_step(torch.empty(3, VOCAB_SIZE), state, backend="native", **options)
    assert state.tokens.shape == (3, 5)
