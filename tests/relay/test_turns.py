"""Several callers of one pair: threads take turns, nested calls are refused, and models end as they were."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_model import relay_engine

from relay_lightning.engine.local import PAGED_ATTENTION, LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.pair import load_relay
from relay_lightning.relay.policies import FixedPolicy
from relay_lightning.relay.relay import Relay
from relay_lightning.relay.requests import RelayRequest

QUESTIONS = [f"How many kebu are {n} and {n + 1}?" for n in range(4)]
GREEDY = SamplingParams(max_completion_tokens=12, temperature=0.0)
CALLS = {"policy": FixedPolicy(n=3, every=4)}


@pytest.fixture
def relay(small_pair):
    relay = load_relay(small_pair.student, small_pair.teacher, max_num_seqs=2)
    relay.engine.student.model.train()
    yield relay
    for model in models(relay):
        assert model.config._attn_implementation != PAGED_ATTENTION
    assert relay.engine.student.model.training
    assert len(relay.generate(QUESTIONS[:1], GREEDY)) == 1, "the pair still answers"


def tokens(completions):
    return [completion.token_ids for completion in completions]


def models(relay):
    """The Hugging Face models of student and teacher."""
    return relay.engine.student.model, relay.engine.teacher.model.model


def generate(relay, on_progress, **options):
    """Answers all questions through the engine itself, which tells of its progress."""
    prompts = [relay.make_prompt(index, question) for index, question in enumerate(QUESTIONS)]
    requests = [RelayRequest(prompt, GREEDY, **options) for prompt in prompts]
    return relay.engine.generate(requests, on_progress)


def another_relay(relay):
    """A second engine around the same models."""
    engine = relay_engine(*map(LocalModel, models(relay)), relay.engine.protocol, max_num_seqs=2)
    return Relay(engine, relay.make_prompt)


def test_threads_get_what_one_alone_gets_when_they_share_a_pair_or_its_models(relay):
    relays = [relay, another_relay(relay)]
    expected = [tokens(relay.generate([question], GREEDY, **CALLS)) for question in QUESTIONS]
    start = threading.Barrier(4)

    def ask(worker):
        start.wait()
        order = [(worker + turn) % len(QUESTIONS) for turn in range(len(QUESTIONS))]
        answers = {index: tokens(relays[worker % 2].generate([QUESTIONS[index]], GREEDY, **CALLS)) for index in order}
        return [answers[index] for index in range(len(QUESTIONS))]

    with ThreadPoolExecutor(4) as threads:
        for answers in threads.map(ask, range(4)):
            assert answers == expected


def test_a_generate_inside_a_generate_of_the_same_pair_is_refused_and_the_outer_one_ends(relay):
    expected = tokens(relay.generate(QUESTIONS, GREEDY, **CALLS))
    refusals = []

    def nest(_):
        with pytest.raises(RuntimeError, match="cannot be called inside a generate of the same pair") as refusal:
            relay.generate(QUESTIONS[:1], GREEDY)
        refusals.append(refusal)

    assert tokens(generate(relay, nest, **CALLS)) == expected
    assert refusals
    assert relay.stats.num_completions == len(QUESTIONS)


def test_another_pair_around_the_same_models_may_answer_inside_a_generate(relay):
    other = another_relay(relay)
    expected = tokens(relay.generate(QUESTIONS, GREEDY, **CALLS))
    inner = []
    outer = generate(relay, lambda _: inner.append(other.generate(QUESTIONS, GREEDY, **CALLS)), **CALLS)
    assert tokens(outer) == expected
    assert inner
    assert all(tokens(completions) == expected for completions in inner)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_models_are_as_before_when_a_generate_is_broken_off(relay, error):
    def stop(_):
        raise error

    with pytest.raises(error):
        generate(relay, stop)


def test_other_threads_go_on_when_one_fails(relay):
    def fail(_):
        raise ValueError("stop")

    def ask(worker):
        if worker % 2:
            with pytest.raises(ValueError, match="stop"):
                generate(relay, fail)
            return None
        return tokens(relay.generate(QUESTIONS, GREEDY, **CALLS))

    expected = tokens(relay.generate(QUESTIONS, GREEDY, **CALLS))
    with ThreadPoolExecutor(4) as threads:
        answers = [answer for answer in threads.map(ask, range(4)) if answer is not None]
    assert answers == [expected] * 2
