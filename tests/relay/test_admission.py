"""What can never be decoded is refused when it is added, in one sentence; the others go on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_model import FakeModel, UniformEngine, relay_engine, scripted_bias
from small_vocabulary import FIRST_LETTER, VOCAB_SIZE, VOCABULARY, small_protocol
from torch import Tensor

from relay_lightning.engine.kv_budget import GB
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.policies import FixedPolicy
from relay_lightning.relay.requests import CallLimits, RelayRequest
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import Completion, Prompt

X, Y = FIRST_LETTER, FIRST_LETTER + 1
BLOCK_SIZE, CONTEXT = 16, 200
GREEDY = SamplingParams(20, temperature=0.0)
POLICY = FixedPolicy(n=2, every=3)


def always(token: int) -> FakeModel:
    def logits(_context: tuple[int, ...]) -> Tensor:
        return scripted_bias(token, VOCAB_SIZE)

    return FakeModel(logits, vocab_size=VOCAB_SIZE, max_context=CONTEXT)


def build(num_blocks: int = 64, **settings: object) -> UniformEngine:
    """Two models with so many blocks each."""
    student, teacher = always(X), always(Y)
    num_bytes = num_blocks * BLOCK_SIZE * (student.kv_bytes_per_token() + teacher.kv_bytes_per_token())
    return relay_engine(student, teacher, small_protocol(), kv_cache_gb=num_bytes / GB, **settings)


def request(prompt_id: int, length: int, budget: int = 20) -> RelayRequest:
    sampling = replace(GREEDY, max_completion_tokens=budget)
    return RelayRequest(Prompt(prompt_id, (2 + prompt_id % 20,) * length), sampling, policy=POLICY)


def finish(engine: UniformEngine) -> dict[int, Completion]:
    """Runs all requests to their end."""
    done = {}
    while engine.has_unfinished:
        done |= {output.request_id: output.completion for output in engine.step() if output.is_finished}
    return done


def num_used(engine: UniformEngine) -> list[int]:
    """KV blocks in use of student and teacher."""
    managers = [runner.prefiller.blocks for runner in (engine._runner, engine.teacher.runner)]
    return [blocks.num_blocks - blocks.num_free for blocks in managers]


NEVER_FIT = {
    "longer than the context": (request(77, CONTEXT), r"prompt 77 has 200 tokens and leaves no room"),
    "more blocks than there are": (request(77, 100), r"prompt 77 and its completion may take 120 tokens, .* hold 64"),
    "a budget of more blocks": (request(77, 3, 180), r"prompt 77 and its completion may take 183 tokens"),
    "an unknown token": (RelayRequest(Prompt(77, (X, 999))), r"prompt 77 holds token id 999"),
    "no tokens": (RelayRequest(Prompt(77, ())), r"prompt 77 is empty"),
}


@pytest.mark.parametrize("name", list(NEVER_FIT))
def test_a_request_that_can_never_fit_is_refused_with_its_id_and_others_go_on(name: str):
    bad, message = NEVER_FIT[name]
    expected = build().generate([request(0, 5), request(1, 9)])
    engine = build(num_blocks=4)
    ids = [engine.add_request(request(0, 5))]
    for _ in range(3):
        engine.step()
    with pytest.raises(ValueError, match=message) as refusal:
        engine.add_request(bad)
    assert "\n" not in str(refusal.value)
    ids.append(engine.add_request(request(1, 9)))
    done = finish(engine)
    assert [done[request_id] for request_id in ids] == expected
    assert num_used(engine) == [0, 0]


def test_models_are_closed_when_the_only_request_is_refused():
    engine = build(num_blocks=4)
    with pytest.raises(ValueError, match="prompt 77 is empty"):
        engine.add_request(RelayRequest(Prompt(77, ())))
    assert engine.student.num_sessions == 1
    assert not engine.student.is_open
    assert not engine.teacher.model.is_open
    request_id = engine.add_request(request(0, 5))
    assert engine.student.is_open
    engine.abort(request_id)
    assert not engine.student.is_open


def test_generate_decodes_nothing_and_keeps_nothing_when_one_of_its_requests_is_refused():
    engine = build(num_blocks=4)
    with pytest.raises(ValueError, match="prompt 77"):
        engine.generate([request(0, 5), request(77, 100), request(1, 9)])
    assert engine.student.num_passes == 0
    assert not engine.has_unfinished
    assert engine.generate([request(0, 5)]) == build().generate([request(0, 5)])


def test_a_prompt_is_refused_when_it_is_too_long_in_the_teachers_vocabulary():
    other = Vocabulary(VOCABULARY)
    bridge = TextBridge(small_protocol().vocabulary, other, lambda prompt: [X] * 100 * len(prompt.token_ids))
    engine = build(bridge=bridge)
    with pytest.raises(ValueError, match="prompt 7 has 300 tokens and leaves no room in the teacher's context of 200"):
        engine.add_request(request(7, 3))
    assert engine.add_request(replace(request(7, 3), policy="teacher_free")) == 0


@pytest.mark.parametrize("num_blocks", [3, 4, 5])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 20, 28])
def test_requests_of_any_length_that_fit_are_decoded_one_after_the_other(num_blocks: int, length: int):
    requests = [request(0, length)] * 3 + [request(1, length)]
    assert build(num_blocks).generate(requests) == build().generate(requests)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 28, 33, 40, 47])
def test_a_completion_may_fill_all_blocks(length: int):
    """A prompt that a free block ends with is read again into all blocks."""
    requests = [replace(request(0, length, 48 - length), policy="teacher_free")] * 2
    engine = build(3)
    assert engine.generate(requests) == build().generate(requests)
    with pytest.raises(ValueError, match="may take 49 tokens, and the KV blocks hold 48"):
        engine.add_request(request(0, length, 49 - length))


def test_ids_count_up_and_are_not_given_twice():
    engine = build()
    first = [engine.add_request(request(0, 5)) for _ in range(2)]
    finish(engine)
    assert [*first, engine.add_request(request(0, 5))] == [0, 1, 2]


def test_abort_of_an_unknown_id_says_so_and_does_nothing():
    engine = build()
    assert not engine.abort(0)
    request_id = engine.add_request(request(0, 5))
    assert not engine.abort(request_id + 1)
    assert not engine.abort(-1)
    assert list(finish(engine)) == [request_id]
    assert not engine.abort(request_id)


@pytest.mark.parametrize("num_steps", range(9))
def test_blocks_come_back_when_a_request_is_aborted_at_any_time(num_steps: int):
    engine = build(max_num_seqs=3)
    kept = engine.add_request(request(0, 40))
    others = [engine.add_request(request(index % 2, 40)) for index in range(5)]
    for _ in range(num_steps):
        engine.step()
    assert all(engine.abort(request_id) for request_id in others)
    assert not any(engine.abort(request_id) or engine.is_in_flight(request_id) for request_id in others)
    assert max(num_used(engine)) <= 4, "only one request is left"
    done = finish(engine)
    assert done == {kept: build().generate([request(0, 40)])[0]}
    assert num_used(engine) == [0, 0]


def test_a_request_that_has_ended_can_be_aborted_until_its_completion_is_returned():
    engine = build()
    request_id = engine.add_request(request(0, 5))
    engine.generate([request(1, 30)])
    assert engine.is_in_flight(request_id)
    assert engine.abort(request_id)
    assert not engine.has_unfinished
    assert engine.step() == []


def test_a_call_is_dropped_when_its_request_is_aborted_while_the_teacher_writes():
    engine = build()
    asked = replace(request(0, 5), policy="teacher_only", limits=CallLimits())
    request_id = engine.add_request(asked)
    for _ in range(3):
        engine.step()
    assert engine.teacher.num_calls == 1
    engine.abort(request_id)
    assert engine.teacher.num_calls == 0
    assert num_used(engine) == [0, 0]
    assert engine.generate([asked]) == build().generate([asked])
