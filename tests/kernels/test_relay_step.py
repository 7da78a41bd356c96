"""What one step does to the rows, in the reference implementation."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from relay_kernels.relay_step import (
    CommandRule,
    CommandTable,
    RelayStepInputs,
    RelayStepState,
    RowStatus,
    TokenSource,
    philox_uniform,
    relay_step,
)
from relay_kernels.relay_step.reference import relay_step_reference
from relay_kernels.relay_step.sampling import draw, keep_most_probable, sample_tokens
from small_vocabulary import VOCAB_SIZE, small_protocol, spell
from step_state import put
from torch import Tensor

STUDENT, TEACHER = TokenSource.STUDENT, TokenSource.TEACHER
EOS = torch.tensor([0])
TABLE = small_protocol().table
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def new_state(num_rows: int, status: RowStatus = RowStatus.STUDENT, max_tokens: int = 12) -> RelayStepState:
    state = RelayStepState.empty(num_rows, max_tokens)
    return put(
        state, status=int(status), token_limit=max_tokens, span_limit=max_tokens, prompt_id=torch.arange(num_rows)
    )


def columns(num_rows: int = 1, **parameters: float) -> dict[str, Tensor]:
    """Sampling parameters that are equal in all rows, off where not given."""
    return {name: torch.tensor([value] * num_rows) for name, value in (OFF | parameters).items()}


def wanting(tokens: list[int], vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Logits by which row i wants tokens[i], and least of all to end, unless that is wanted."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocab_size) * 20.0 - 9.0 * (torch.arange(vocab_size) == 0)


def write(state: RelayStepState, tokens: list[int], writer: TokenSource = STUDENT) -> None:
    put(state, temperature=0.0)
    relay_step(wanting(tokens), state, writer=writer, eos_token_ids=EOS, table=TABLE)


def test_student_row_is_called_when_its_command_completes():
    state = new_state(2)
    for left, right in zip(spell("<call>12</call>"), spell("x<call>0<"), strict=False):
        assert state.status.tolist() == [RowStatus.STUDENT, RowStatus.STUDENT]
        write(state, [left, right])
    assert state.status.tolist() == [RowStatus.CALLED, RowStatus.STUDENT]
    assert state.command_n[0] == 12
    assert state.tokens[0, : int(state.num_tokens[0])].tolist() == spell("<call>12</call>")


def test_row_is_full_when_its_command_completes_at_the_limit():
    state = new_state(1)
    state.token_limit.fill_(len(spell("<call>5</call>")))
    for token in spell("<call>5</call>"):
        write(state, [token])
    assert state.status.tolist() == [RowStatus.LENGTH]


@pytest.mark.parametrize(
    ("ends", "status", "num_tokens"), [(True, RowStatus.TEACHER_STOP, 1), (False, RowStatus.TEACHER_ENDED, 0)]
)
def test_teacher_row_ends_at_its_eos(ends: bool, status: RowStatus, num_tokens: int):
    state = new_state(1, RowStatus.TEACHER)
    state.ends_on_teacher_eos.fill_(ends)
    write(state, [0], TEACHER)
    assert (state.status.tolist(), state.num_tokens.tolist()) == ([status], [num_tokens])


def test_teacher_row_is_delivered_at_the_span_limit_and_full_at_the_token_limit():
    state = new_state(2, RowStatus.TEACHER)
    state.span_limit.copy_(torch.tensor([2, 2]))
    state.token_limit.copy_(torch.tensor([9, 2]))
    write(state, [5, 5], TEACHER)
    assert state.status.tolist() == [RowStatus.TEACHER] * 2
    write(state, [6, 6], TEACHER)
    assert state.status.tolist() == [RowStatus.DELIVERED, RowStatus.LENGTH]
    assert state.token_source[:, :2].tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("status", [status for status in RowStatus if status != RowStatus.STUDENT])
def test_rows_of_others_are_left_alone_whatever_their_logits_say(status: RowStatus):
    state = new_state(3, status)
    state.status[1] = int(RowStatus.STUDENT)
    put(state, seed=1)
    before = {field.name: getattr(state, field.name).clone() for field in fields(state)}
    logits = wanting([4, 5, 6])
    logits[[0, 2]] = torch.nan
    relay_step(logits, state, writer=STUDENT, eos_token_ids=EOS, table=TABLE)
    for name, old in before.items():
        new = getattr(state, name)
        width = slice(0, state.max_tokens) if old.dim() == 2 else ...
        assert torch.equal(new[[0, 2]][..., width] if old.dim() == 2 else new[[0, 2]], old[[0, 2]][..., width])
    assert state.tokens[1, 0] == 5


def test_completing_token_is_never_written_when_commands_are_masked():
    state = new_state(2)
    put(state, command_rule=[CommandRule.MASK_CLOSE, CommandRule.CALL])
    *opening, closing = spell("<call>7</call>")
    for token in opening:
        write(state, [token, token])
    write(state, [closing, closing])
    assert state.tokens[0, len(opening)] != closing
    assert state.status.tolist() == [RowStatus.STUDENT, RowStatus.CALLED]
    raw = wanting([closing])[0].log_softmax(-1)
    written = int(state.tokens[0, len(opening)])
    assert state.log_probs[0, len(opening)] == pytest.approx(float(raw[written]))


def test_subset_of_rows_gives_the_same_as_all_of_them():
    logits = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    everyone, some = put(new_state(5), seed=4), put(new_state(5), seed=4)
    relay_step(logits, everyone, writer=STUDENT, eos_token_ids=EOS, table=TABLE)
    rows = torch.tensor([4, 1])
    relay_step(logits[rows], some, writer=STUDENT, eos_token_ids=EOS, table=TABLE, rows=rows)
    for field in fields(RelayStepState):
        torch.testing.assert_close(getattr(some, field.name)[rows], getattr(everyone, field.name)[rows])
    assert some.num_tokens.tolist() == [0, 1, 0, 0, 1]


def test_a_state_without_completions_samples_from_the_whole_distribution_at_temperature_one():
    state = RelayStepState.empty(3, 2)
    assert {name: getattr(state, name).tolist() for name in OFF} == {name: [value] * 3 for name, value in OFF.items()}
    assert state.command_rule.tolist() == [CommandRule.CALL] * 3


def test_drawn_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).expand(5, -1)
    uniform = torch.tensor([0.0, 0.25 - 2**-24, 0.25, 0.75, 1 - 2**-24])
    assert draw(probs, uniform).tolist() == [1, 1, 3, 4, 4]


def test_tokens_occur_as_often_as_their_probability_says():
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 1.0])
    num_draws = 40_000
    uniform = philox_uniform(0, torch.arange(num_draws), torch.tensor(0), torch.tensor(0), 0)
    token, log_prob, sampling_log_prob = sample_tokens(
        logits.expand(num_draws, -1), uniform, **columns(num_draws, temperature=0.8)
    )
    expected = (logits / 0.8).softmax(-1)
    frequency = torch.bincount(token, minlength=5) / num_draws
    assert frequency[3] == 0
    assert (frequency - expected).abs().max() < 4 * (0.25 / num_draws) ** 0.5
    torch.testing.assert_close(log_prob, expected.log()[token])
    assert torch.equal(log_prob, sampling_log_prob)


@pytest.mark.parametrize(
    ("cut", "kept"),
    [
        ({"top_k": 2}, [0, 3]),
        ({"top_k": 3}, [0, 1, 3, 4]),  # 1 and 4 are equally probable
        ({"top_p": 0.3}, [3]),
        ({"top_p": 0.45}, [0, 3]),
        ({"top_p": 0.71}, [0, 1, 3, 4]),
        ({"min_p": 0.5}, [0, 3]),
        ({"top_k": 2, "top_p": 0.5}, [3]),  # of the 0.7 that top-k leaves, token 3 holds more than half
        ({"top_k": 99, "top_p": 1.0, "min_p": 0.0}, [0, 1, 2, 3, 4]),
    ],
)
def test_truncation_keeps(cut: dict[str, float], kept: list[int]):
    probs = torch.tensor([[0.3, 0.13, 0.04, 0.4, 0.13]])
    expected = torch.zeros_like(probs)
    expected[:, kept] = probs[:, kept]
    for num_rows in (1, 2):
        parameters = columns(num_rows, **cut)
        del parameters["temperature"]
        kept_probs = keep_most_probable(probs.expand(num_rows, -1), **parameters)
        assert torch.equal(kept_probs, expected.expand(num_rows, -1))


def test_log_probs_are_of_the_whole_and_of_the_truncated_distribution():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    token, log_prob, sampling_log_prob = sample_tokens(logits, torch.tensor([0.1]), **columns(temperature=0.5, top_k=2))
    assert token.tolist() == [0]
    assert float(log_prob) == pytest.approx(float((logits / 0.5).log_softmax(-1)[0, 0]))
    assert float(sampling_log_prob) == pytest.approx(float((logits[:, [0, 3]] / 0.5).log_softmax(-1)[0, 0]))


def test_each_row_has_its_own_parameters():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    uniform = torch.tensor([0.2, 0.4, 0.6, 0.8])
    each = {
        "temperature": torch.tensor([0.0, 0.7, 1.0, 1.5]),
        "top_k": torch.tensor([0, 3, 0, 5]),
        "top_p": torch.tensor([1.0, 1.0, 0.6, 0.9]),
        "min_p": torch.tensor([0.0, 0.0, 0.0, 0.1]),
    }
    together = sample_tokens(logits, uniform, **each)
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in each.items()}
        alone = sample_tokens(logits[row : row + 1], uniform[row : row + 1], **one)
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[row : row + 1], single)


@pytest.mark.parametrize("truncates", [True, False])
@pytest.mark.parametrize(("writer", "table"), [(STUDENT, TABLE), (TEACHER, None)])
def test_the_definition_compiles_whole_and_does_the_same(
    writer: TokenSource, table: CommandTable | None, truncates: bool
):
    status = RowStatus(writer)
    plain, compiled = put(new_state(3, status), seed=5), put(new_state(3, status), seed=5)
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    step = torch.compile(relay_step_reference, backend="eager", fullgraph=True)
    for run, state in ((relay_step_reference, plain), (step, compiled)):
        run(RelayStepInputs(logits, state, writer, EOS, None, table, truncates))
    assert plain.num_tokens.tolist() == [1, 1, 1]
    for field in fields(RelayStepState):
        assert torch.equal(getattr(compiled, field.name), getattr(plain, field.name)), field.name
