"""What one step does to the rows, in the reference implementation."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from relay_kernels.relay_step import CommandTable, RelayStepState, RowStatus, Writer, philox_uniform, relay_step
from relay_kernels.relay_step.reference import relay_step_reference
from relay_kernels.relay_step.sampling import draw, keep_most_probable, sample_tokens
from small_vocabulary import VOCAB_SIZE, small_protocol, spell
from torch import Tensor

EOS = torch.tensor([0])
TABLE = small_protocol().table


def new_state(num_slots: int, status: RowStatus = RowStatus.STUDENT, max_tokens: int = 12) -> RelayStepState:
    state = RelayStepState.empty(num_slots, max_tokens)
    state.status.fill_(int(status))
    state.token_limit.fill_(max_tokens)
    state.span_limit.fill_(max_tokens)
    state.can_call.fill_(True)
    state.prompt_id.copy_(torch.arange(num_slots))
    return state


def wanting(tokens: list[int], vocab_size: int = VOCAB_SIZE) -> Tensor:
    """Logits by which row i wants tokens[i], and least of all to end, unless that is wanted."""
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocab_size) * 20.0 - 9.0 * (torch.arange(vocab_size) == 0)


def write(state: RelayStepState, tokens: list[int], writer: str = "student", **kwargs: object) -> None:
    table = TABLE if writer == "student" else None
    relay_step(wanting(tokens), state, writer=writer, eos_token_ids=EOS, table=table, temperature=0.0, **kwargs)


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
    write(state, [0], "teacher")
    assert (state.status.tolist(), state.num_tokens.tolist()) == ([status], [num_tokens])


def test_teacher_row_is_delivered_at_the_span_limit_and_full_at_the_token_limit():
    state = new_state(2, RowStatus.TEACHER)
    state.span_limit.copy_(torch.tensor([2, 2]))
    state.token_limit.copy_(torch.tensor([9, 2]))
    write(state, [5, 5], "teacher")
    assert state.status.tolist() == [RowStatus.TEACHER] * 2
    write(state, [6, 6], "teacher")
    assert state.status.tolist() == [RowStatus.DELIVERED, RowStatus.LENGTH]
    assert state.token_source[:, :2].tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("status", [status for status in RowStatus if status != RowStatus.STUDENT])
def test_rows_of_others_are_left_alone_whatever_their_logits_say(status: RowStatus):
    state = new_state(3, status)
    state.status[1] = int(RowStatus.STUDENT)
    before = {field.name: getattr(state, field.name).clone() for field in fields(state)}
    logits = wanting([4, 5, 6])
    logits[[0, 2]] = torch.nan
    relay_step(logits, state, writer="student", eos_token_ids=EOS, table=TABLE, seed=1)
    for name, old in before.items():
        new = getattr(state, name)
        width = slice(0, state.max_tokens) if old.dim() == 2 else ...
        assert torch.equal(new[[0, 2]][..., width] if old.dim() == 2 else new[[0, 2]], old[[0, 2]][..., width])
    assert state.tokens[1, 0] == 5


def test_completing_token_is_never_written_when_commands_are_masked():
    state = new_state(2)
    state.can_call.copy_(torch.tensor([False, True]))
    *opening, closing = spell("<call>7</call>")
    for token in opening:
        write(state, [token, token], mask_commands=True)
    write(state, [closing, closing], mask_commands=True)
    assert state.tokens[0, len(opening)] != closing
    assert state.status.tolist() == [RowStatus.STUDENT, RowStatus.CALLED]
    raw = wanting([closing])[0].log_softmax(-1)
    written = int(state.tokens[0, len(opening)])
    assert state.log_probs[0, len(opening)] == pytest.approx(float(raw[written]))


def test_subset_of_slots_gives_the_same_rows_as_all_of_them():
    logits = torch.randn(5, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    everyone, some = new_state(5), new_state(5)
    relay_step(logits, everyone, writer="student", eos_token_ids=EOS, table=TABLE, seed=4)
    slots = torch.tensor([4, 1])
    relay_step(logits[slots], some, writer="student", eos_token_ids=EOS, table=TABLE, seed=4, slots=slots)
    for field in fields(RelayStepState):
        torch.testing.assert_close(getattr(some, field.name)[slots], getattr(everyone, field.name)[slots])
    assert some.num_tokens.tolist() == [0, 1, 0, 0, 1]


def test_draws_computed_beforehand_are_the_draws_of_the_key():
    logits = torch.zeros(6, VOCAB_SIZE)
    ahead, keyed = new_state(6), new_state(6)
    positions = torch.arange(12)[None]
    uniforms = philox_uniform(11, ahead.prompt_id[:, None], ahead.sample_index[:, None], positions, 0)
    for _ in range(3):
        relay_step(logits, ahead, writer="student", eos_token_ids=EOS, table=TABLE, seed=11, uniforms=uniforms)
        relay_step(logits, keyed, writer="student", eos_token_ids=EOS, table=TABLE, seed=11)
    assert torch.equal(ahead.tokens, keyed.tokens)


def test_drawn_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]]).expand(5, -1)
    uniform = torch.tensor([0.0, 0.25 - 2**-24, 0.25, 0.75, 1 - 2**-24])
    assert draw(probs, uniform).tolist() == [1, 1, 3, 4, 4]


def test_tokens_occur_as_often_as_their_probability_says():
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 1.0])
    num_draws = 40_000
    uniform = philox_uniform(0, torch.arange(num_draws), torch.tensor(0), torch.tensor(0), 0)
    token, log_prob, sampling_log_prob = sample_tokens(logits.expand(num_draws, -1), uniform, temperature=0.8)
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
    assert torch.equal(keep_most_probable(probs, **cut), expected)
    rows = {name: torch.tensor([value, value]) for name, value in cut.items()}
    assert torch.equal(keep_most_probable(probs.expand(2, -1), **rows), expected.expand(2, -1))


def test_log_probs_are_of_the_whole_and_of_the_truncated_distribution():
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]])
    token, log_prob, sampling_log_prob = sample_tokens(logits, torch.tensor([0.1]), temperature=0.5, top_k=2)
    assert token.tolist() == [0]
    assert float(log_prob) == pytest.approx(float((logits / 0.5).log_softmax(-1)[0, 0]))
    assert float(sampling_log_prob) == pytest.approx(float((logits[:, [0, 3]] / 0.5).log_softmax(-1)[0, 0]))


def test_each_row_has_its_own_parameters_when_they_are_tensors():
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
        one = {name: float(value[row]) if name != "top_k" else int(value[row]) for name, value in each.items()}
        alone = sample_tokens(logits[row : row + 1], uniform[row : row + 1], **one)
        for batched, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batched[row : row + 1], single)


@pytest.mark.parametrize(("writer", "table"), [(Writer.STUDENT, TABLE), (Writer.TEACHER, None)])
def test_the_definition_compiles_whole_and_does_the_same(writer: Writer, table: CommandTable | None):
    status = RowStatus.STUDENT if writer == Writer.STUDENT else RowStatus.TEACHER
    plain, compiled = new_state(3, status), new_state(3, status)
    logits = torch.randn(3, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    rest = (None, writer, table, EOS, 1.0, 0, 1.0, 0.0, False, 5, None)
    relay_step_reference(logits, plain, *rest)
    torch.compile(relay_step_reference, backend="eager", fullgraph=True)(logits, compiled, *rest)
    assert plain.num_tokens.tolist() == [1, 1, 1]
    for field in fields(RelayStepState):
        assert torch.equal(getattr(compiled, field.name), getattr(plain, field.name)), field.name
