"""The relay step natively and in Triton, held to its definition: same tokens, same state, same log-probabilities.

Triton's runs happen on a CUDA device, or in the process that test_interpreter.py starts.
"""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from native_library import needs_library
from relay_kernels.backends import why_not_native
from relay_kernels.relay_step import CommandRule, RowStatus, TokenSource, philox_uniform, relay_step
from relay_kernels.relay_step.sampling import keep_most_probable
from step_state import copied, make_logits, make_state, make_table, put

STUDENT, TEACHER = TokenSource.STUDENT, TokenSource.TEACHER
LOG_PROBS = ("log_probs", "sampling_log_probs")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CASES = [("triton", "cpu")] if INTERPRETED else [pytest.param(("native", "cpu"), marks=needs_library)]
if torch.cuda.is_available() and not INTERPRETED:
    no_cuda = str(why_not_native(torch.device("cuda")))
    skip = pytest.mark.skipif(no_cuda != "None", reason=no_cuda)
    CASES.append(pytest.param(("triton", "cuda"), marks=pytest.mark.gpu))
    CASES.append(pytest.param(("native", "cuda"), marks=[pytest.mark.gpu, skip]))


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return request.param


@pytest.fixture
def backend(case):
    return case[0]


@pytest.fixture
def device(case):
    return torch.device(case[1])


def step(backend, logits, state, *, writer=STUDENT, eos=(), **options):
    """One step, with the end-of-sequence tokens as a list."""
    eos = torch.tensor(eos, dtype=torch.int64, device=logits.device)
    relay_step(logits, state, writer=writer, eos_token_ids=eos, backend=backend, **options)


def check_equals_reference(backend, logits, state, device, **options):
    """Runs both on copies of the state; returns the state that the fast one left."""
    states = [copied(state, device) for _ in range(2)]
    for each, name in zip(states, ("reference", backend), strict=True):
        step(name, logits, each, **options)
    expected, ours = states
    for field in dataclasses.fields(state):
        theirs, mine = getattr(expected, field.name), getattr(ours, field.name)
        if mine.dim() == 2:
            theirs, mine = theirs[:, :-1], mine[:, :-1]  # the last column is scratch
        if field.name in LOG_PROBS:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(mine, theirs), field.name
    return ours


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab_size", [1, 37, 256, 4097])
def test_temperature_sampling(backend, device, dtype, vocab_size):
    logits = make_logits((9, vocab_size), device, dtype)
    options = {"table": make_table(vocab_size, device), "eos": [0, vocab_size // 2]}
    state = put(make_state(9, device), seed=2**63 + 11)
    for temperature in (1.0, 0.6, 0.0):
        for truncates in (True, False):
            put(state, temperature=temperature)
            check_equals_reference(backend, logits, state, device, truncates=truncates, **options)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 40},
        {"top_k": 100_000},
        {"top_p": 0.9},
        {"top_p": 1e-6},
        {"min_p": 0.3},
        {"top_k": 20, "top_p": 0.5, "min_p": 0.01},
    ],
    ids=str,
)
def test_truncated_sampling(backend, device, dtype, cut):
    logits = make_logits((3, 4500), device, dtype, seed=3)
    state = put(make_state(3, device, seed=3), temperature=0.8, seed=5, **cut)
    check_equals_reference(backend, logits, state, device)


@pytest.mark.skipif(INTERPRETED, reason="a vocabulary of this size takes the interpreter minutes")
@pytest.mark.parametrize("vocab_size", [151_936, 262_144])
def test_vocabularies_of_published_models(backend, device, vocab_size):
    logits = make_logits((5, vocab_size), device, torch.bfloat16, spread=3.0)
    table = make_table(vocab_size, device)
    for options in ({}, {"temperature": 0.0}, {"top_k": 50, "top_p": 0.95}):
        state = put(make_state(5, device), seed=3, **options)
        check_equals_reference(backend, logits, state, device, table=table)


@pytest.mark.parametrize("cut", [{}, {"top_k": 4, "top_p": 0.9}], ids=["whole", "cut"])
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_banned_commands_are_never_drawn_even_if_they_outweigh_all_else(backend, device, cut, temperature):
    rules = torch.arange(8) % 4
    table, state = make_table(600, device), make_state(8, device, temperature=temperature, command_rule=rules, **cut)
    logits = make_logits((8, 600), device, torch.bfloat16)
    check_equals_reference(backend, logits, state, device, table=table)
    wanted = table.is_complete[0] | table.is_opening[0]
    step(backend, logits + 200.0 * wanted, state, table=table)
    is_complete, is_opening = table.is_complete[0][state.last_token], table.is_opening[0][state.last_token]
    for rule, completes, opens in zip(rules.tolist(), is_complete.tolist(), is_opening.tolist(), strict=True):
        assert (completes or opens) == (rule < CommandRule.MASK_OPEN)
        assert not (completes and rule == CommandRule.MASK_CLOSE)


@pytest.mark.parametrize("writer", [STUDENT, TEACHER])
def test_rows_of_others_are_left_alone_and_ends_are_seen(backend, device, writer):
    """Tokens repeat so often in a vocabulary of 6 that every status occurs."""
    status = [index % 9 for index in range(45)]
    state = make_state(45, device, status=status)
    state.command_n.copy_(torch.randint(0, 10**9, (45,), generator=torch.Generator().manual_seed(1)))
    state.command_state.copy_(torch.arange(45) % 5)
    ours = check_equals_reference(
        backend, make_logits((45, 6), device), state, device, writer=writer, table=make_table(6, device), eos=[2]
    )
    is_other = torch.tensor(status, device=device) != int(writer)
    assert torch.equal(ours.num_tokens[is_other], state.num_tokens[is_other])
    assert torch.equal(ours.status[is_other], state.status[is_other])


def test_every_status_of_a_step_occurs(backend, device):
    for writer, wanted in (
        (STUDENT, {RowStatus.STUDENT, RowStatus.CALLED, RowStatus.STOP, RowStatus.LENGTH}),
        (
            TEACHER,
            {RowStatus.TEACHER, RowStatus.DELIVERED, RowStatus.TEACHER_STOP, RowStatus.TEACHER_ENDED, RowStatus.LENGTH},
        ),
    ):
        state = make_state(60, device, status=writer)
        ours = check_equals_reference(
            backend, make_logits((60, 6), device), state, device, writer=writer, table=make_table(6, device), eos=[2]
        )
        assert set(ours.status.tolist()) == {int(status) for status in wanted}


def test_some_rows_and_strided_logits(backend, device):
    state = make_state(10, device)
    rows = torch.tensor([7, 0, 3], device=device)
    for logits in (make_logits((3, 80), device), make_logits((80, 3), device).T, make_logits((3, 160), device)[:, :80]):
        ours = check_equals_reference(backend, logits, state, device, rows=rows, table=make_table(80, device))
        assert torch.equal(ours.status[[1, 2, 4]], state.status[[1, 2, 4]])


def test_extreme_logits(backend, device):
    logits = make_logits((6, 500), device, spread=1e4)
    logits[1] = float("-inf")
    logits[1, 321] = 0.0
    logits[2, 1:] = float("-inf")
    logits[3] = 1e30
    ours = check_equals_reference(backend, logits, make_state(6, device), device)
    assert int(ours.last_token[1]) == 321
    check_equals_reference(backend, logits[:3], put(make_state(3, device), top_k=2, top_p=0.9), device)


def test_no_rows_and_all_rows_parked(backend, device):
    check_equals_reference(backend, make_logits((0, 50), device), make_state(0, device), device)
    check_equals_reference(
        backend, make_logits((4, 50), device), make_state(4, device, status=[TEACHER, 0, 3, 6]), device
    )


def test_steps_after_one_another(backend, device):
    """The arrival counters are back at zero after each launch."""
    state, mine = make_state(3, device), make_state(3, device)
    for seed in range(3):
        logits = make_logits((3, 9000), device, seed=seed)
        for each, name in ((state, "reference"), (mine, backend)):
            step(name, logits, each)
        assert torch.equal(state.tokens[:, :-1], mine.tokens[:, :-1])


@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.7}], ids=str)
def test_frequencies_follow_the_probabilities_and_the_impossible_never_happens(backend, device, cut):
    """Draws of many samples hit each token as often as its probability says, within four standard deviations."""
    infinity = float("inf")
    logits = torch.tensor([1.0, -infinity, 0.3, 2.0, -40.0, -infinity, 1.9, -infinity], dtype=torch.bfloat16)
    num_draws = 200
    state = make_state(num_draws, device, **cut)
    step(backend, logits.to(device).expand(num_draws, -1), state)
    kept = logits.float()
    if cut == {"top_k": 3}:
        kept[2] = kept[4] = float("-inf")
    elif cut:  # 0.41 and 0.37 are the first to reach 0.7
        kept[0] = kept[2] = kept[4] = float("-inf")
    probs = torch.softmax(kept, 0)
    counts = torch.bincount(state.last_token.cpu(), minlength=8)
    assert not counts[probs == 0].any()
    assert ((counts - num_draws * probs).abs() <= 4 * (num_draws * probs * (1 - probs)).sqrt()).all()


@needs_library
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"top_k": 40}, {"top_p": 0.9}, {"top_k": 60, "top_p": 0.95, "min_p": 0.02}],
    ids=str,
)
def test_the_same_key_draws_the_same_token_unless_rounding_decides(options):
    """A draw may differ from the definition's only where the uniform lies at the edge between two tokens.

    Rounding moves an edge of the definition's cumulative probabilities by less than EDGE: log-probabilities are rounded
    to 2^-24 of themselves, which moves probabilities by 2^-24 of their share of the entropy, at most ln 402 in all.
    """
    edge = 1e-6
    num_rows, vocab_size = 512, 402
    state = make_state(num_rows, torch.device("cpu"), seed=6)
    logits = make_logits((num_rows, vocab_size), "cpu", spread=3.0, seed=8)
    states = [copied(state, "cpu") for _ in range(2)]
    for each, name in zip(states, ("reference", "native"), strict=True):
        step(name, logits, put(each, seed=9, **options))
    expected, ours = (each.last_token for each in states)
    uniform = philox_uniform(9, state.prompt_id, state.sample_index, state.num_tokens, 0).double()
    probs = (logits.double() / options.get("temperature", 1.0)).softmax(-1)
    if set(options) - {"temperature"}:
        cut = keep_most_probable(probs, states[0].top_k, states[0].top_p.double(), states[0].min_p.double())
        probs = cut / cut.sum(-1, keepdim=True)
    cumulative = probs.cumsum(-1)
    upper = cumulative.gather(1, ours[:, None])[:, 0]
    lower = upper - probs.gather(1, ours[:, None])[:, 0]
    assert ((lower - edge <= uniform) & (uniform <= upper + edge)).all()
    at_edge = ((cumulative - uniform[:, None]).abs() < edge).any(-1)
    assert at_edge.sum() < num_rows // 50
    assert torch.equal(ours[~at_edge], expected[~at_edge])


@needs_library
def test_a_step_has_the_same_bits_on_any_number_of_threads():
    logits, state = make_logits((40, 5000), "cpu"), make_state(40, "cpu", top_p=0.9)
    states, before = [], torch.get_num_threads()
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        states.append(copied(state, "cpu"))
        step("native", logits, states[-1], eos=[0])
    torch.set_num_threads(before)
    for name in ("tokens", *LOG_PROBS):
        first, *others = (getattr(each, name)[:, :-1] for each in states)
        assert all(torch.equal(first, other) for other in others)


def test_what_is_not_a_number_shows_in_the_log_probability(backend, device):
    logits = make_logits((4, 90), device)
    logits[0, 17], logits[1], logits[2, 3] = torch.nan, float("-inf"), torch.inf
    for temperature in (1.0, 0.0):
        state = make_state(4, device, temperature=temperature)
        step(backend, logits, state)
        written = state.log_probs.gather(1, state.num_tokens[:, None] - 1)[:, 0]
        assert written.isnan().tolist() == [True, True, True, False]


@needs_library
def test_what_the_library_does_not_take_runs_by_definition_unless_native_is_asked_for():
    state, logits = make_state(2, "cpu"), make_logits((2, 30), "cpu")
    narrow = torch.tensor([0], dtype=torch.int32)
    relay_step(logits, state, writer=STUDENT, eos_token_ids=narrow)
    assert (state.last_token > 0).any()
    state = make_state(2, "cpu")
    before = copied(state, "cpu")
    with pytest.raises(RuntimeError, match=r"backend='native' of relay_step cannot run: eos_token_ids is not"):
        relay_step(logits, state, writer=STUDENT, eos_token_ids=narrow, backend="native")
    for field in dataclasses.fields(state):
        assert torch.equal(getattr(state, field.name), getattr(before, field.name))
