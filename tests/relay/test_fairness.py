"""How long a request may wait, counted in engine steps."""

from __future__ import annotations

import pytest
from fake_model import FakeModel, UniformEngine, relay_engine, scripted_bias
from small_vocabulary import FIRST_LETTER, VOCAB_SIZE, small_protocol, spell

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.policies import FixedPolicy
from relay_lightning.relay.requests import CallLimits, RelayRequest
from relay_lightning.relay.scheduler import BURST, MAX_WAIT
from relay_lightning.types import Prompt, TokenSource

X, Y = FIRST_LETTER, FIRST_LETTER + 1
LONG = SamplingParams(max_completion_tokens=900, temperature=0.0)
COMMAND = spell("<call>5</call>")


def calls_if_asked(context: tuple[int, ...]):
    """A student that calls at once where its prompt ends in Y, and else writes on and on."""
    is_asked, position = context[1] == Y, len(context) - 2
    token = COMMAND[position] if is_asked and position < len(COMMAND) else X
    return scripted_bias(token, VOCAB_SIZE)


def build(**settings: float) -> UniformEngine:
    student = FakeModel(calls_if_asked, vocab_size=VOCAB_SIZE, max_context=1000)
    teacher = FakeModel(lambda _: scripted_bias(Y, VOCAB_SIZE), vocab_size=VOCAB_SIZE, max_context=1000)
    return relay_engine(student, teacher, small_protocol(), max_num_seqs=64, **settings)


def request(index: int, last: int, policy: object = "command") -> RelayRequest:
    return RelayRequest(Prompt(index, (2 + index % 20, last)), LONG, policy=policy)


def steps_until(engine: UniformEngine, request_id: int, source: TokenSource) -> int:
    """Engine steps until an output of the request holds a token of that author."""
    for num_steps in range(1, 2000):
        for output in engine.step():
            if output.request_id == request_id and source in output.token_source:
                return num_steps
    raise AssertionError("the request starves")


def test_a_request_that_arrives_while_63_others_run_gets_its_first_token_at_once():
    engine = build()
    for index in range(63):
        engine.add_request(request(index, X))
    for _ in range(20):
        engine.step()
    assert steps_until(engine, engine.add_request(request(63, X)), TokenSource.STUDENT) <= 4


def test_a_call_is_answered_in_bounded_time_while_63_others_write_without_end():
    engine = build()
    for index in range(63):
        engine.add_request(request(index, X))
    caller = engine.add_request(request(63, Y))
    bound = len(COMMAND) + MAX_WAIT + BURST
    assert steps_until(engine, caller, TokenSource.TEACHER) <= bound


@pytest.mark.parametrize("policy", ["teacher_only", FixedPolicy(n=500, every=1)])
def test_a_student_gets_its_turn_in_bounded_time_while_the_teacher_has_63_others(policy: object):
    engine = build()
    for index in range(63):
        engine.add_request(request(index, X, policy))
    for _ in range(5):
        engine.step()
    late = engine.add_request(RelayRequest(Prompt(99, (2, X)), LONG, limits=CallLimits()))
    assert steps_until(engine, late, TokenSource.STUDENT) <= MAX_WAIT + BURST + 1


def test_a_stream_of_newcomers_does_not_hold_up_one_that_was_preempted():
    """Few KV blocks, and new requests at every step: the oldest goes on all the time."""
    engine = build(kv_cache_gb=60 * 16 * 16 / 10**9)  # one row of the longest length, and a little
    oldest = engine.add_request(request(0, X))
    num_tokens, num_steps = 0, 0
    while engine.is_in_flight(oldest):
        num_steps += 1
        if num_steps % 2 == 0 and num_steps < 800:
            engine.add_request(RelayRequest(Prompt(num_steps, (3, X)), SamplingParams(max_completion_tokens=60)))
        num_tokens += sum(len(output.token_ids) for output in engine.step() if output.request_id == oldest)
    assert num_tokens == 900
    assert num_steps <= 900 + 1
    while engine.has_unfinished:
        engine.step()
    assert engine._loop.scheduler.num_preemptions > 0
