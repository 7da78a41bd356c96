"""A sample is the same whatever happens around it: other requests, their order, aborts, few KV blocks, preemption."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from fake_model import FakeModel, relay_engine, scripted_bias
from small_vocabulary import FIRST_LETTER, VOCAB_SIZE, small_protocol, spell
from torch import Tensor

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.policies import (
    EntropyPolicy,
    FixedPolicy,
    MarginPolicy,
    RandomQueryPolicy,
    RandomTokenPolicy,
)
from relay_lightning.relay.requests import CallLimits, RelayRequest
from relay_lightning.types import Completion, Prompt

NUM_DEFAULT, NUM_SLOW = 30, 200
NUM_REQUESTS = 48
LONGEST = 60 + 40
"""Tokens of the longest prompt and completion."""
BYTES_PER_TOKEN = 2 * 8
"""Of both fake models."""
COMMANDS = ["<call>3</call>", "x<call>12</call>", "<call>2</call><call>1</call>", "<call>9"]


def logits_of(seed: int) -> FakeModel:
    """A model whose logits depend on the whole context; now and then it spells a command, or ends."""

    @cache
    def logits(context: tuple[int, ...]) -> Tensor:
        rng = random.Random(f"{seed}{context}")
        values = torch.tensor([rng.gauss(0.0, 2.0) for _ in range(VOCAB_SIZE)]) + scripted_bias(None, VOCAB_SIZE)
        for text in COMMANDS:
            tokens = spell(text)
            for position in range(len(tokens)):
                if (position == 0 and rng.random() < 0.05) or (
                    position and context[-position:] == tuple(tokens[:position])
                ):
                    values[tokens[position]] += 6.0
        if rng.random() < 0.03:
            values[0] += 200.0
        return values

    return FakeModel(logits, vocab_size=VOCAB_SIZE, max_context=200)


STUDENT, TEACHER = logits_of(1), logits_of(2)


def draw_request(index: int) -> RelayRequest:
    """One of a fixed pool of requests; some share a prompt, or the beginning of one."""
    rng = random.Random(index)
    shared = [FIRST_LETTER] * rng.choice((0, 16, 20, 33))
    letters = [2 + index % 7, *[rng.randrange(FIRST_LETTER, VOCAB_SIZE) for _ in range(rng.randrange(20))]]
    if index % 3 == 0:
        letters = [2 + index % 5] * 26
    sampling = SamplingParams(
        max_completion_tokens=rng.randint(1, 40),
        temperature=rng.choice((0.0, 0.7, 1.0)),
        top_k=rng.choice((0, 0, 5)),
        top_p=rng.choice((1.0, 0.8)),
        min_p=rng.choice((0.0, 0.05)),
        stop=rng.choice(((), (), ("xy", "zz"), ("ab",))),
    )
    policies = ["command", "command", "command", "teacher_free", "teacher_only", FixedPolicy(n=3, every=4)]
    policies += [RandomTokenPolicy(n=2, p=0.2), RandomQueryPolicy(0.5), EntropyPolicy(2, 2.5), MarginPolicy(2, 0.05)]
    limits = CallLimits(
        max_calls=rng.choice((None, None, 0, 1, 2)),
        max_call_tokens=rng.choice((None, None, 1, 5)),
        eos_policy=rng.choice(("finish", "return")),
        spent_calls=rng.choice(("text", "mask_close", "mask_open")),
    )
    return RelayRequest(
        Prompt(index // 4, (*shared, *letters)),
        sampling,
        teacher_sampling=rng.choice((None, replace(sampling, temperature=0.5, top_p=0.9))),
        policy=rng.choice(policies),
        limits=limits,
        seed=rng.choice((0, 1, -1, 2**64 + 5)),
        sample_index=index % 4,
    )


def build(max_num_seqs: int, num_blocks: int, block_size: int = 16, steps_per_sync: int = 1) -> RelayEngine:
    return relay_engine(
        STUDENT,
        TEACHER,
        small_protocol(),
        max_num_seqs=max_num_seqs,
        block_size=block_size,
        kv_cache_gb=(num_blocks * block_size + 0.5) * BYTES_PER_TOKEN / 10**9,
        steps_per_sync=steps_per_sync,
    )


@cache
def alone(index: int) -> Completion:
    """The completion of a request that has an engine for itself."""
    [completion] = build(1, 20).generate([draw_request(index)])
    return completion


def run_schedule(seed: int) -> dict[str, int]:
    """Requests that come and go at random; every one that is finished must be as if it were alone."""
    rng = random.Random(seed)
    block_size = rng.choice((16, 32, 48))
    fewest = -(-LONGEST // block_size)
    engine = build(
        rng.choice((1, 2, 3, 5, 16)),
        rng.choice((fewest, fewest + 1, fewest + 4, 60)),
        block_size,
        rng.choice((1, 1, 3)),
    )
    waiting = [rng.randrange(NUM_REQUESTS) for _ in range(rng.randint(1, 14))]
    expected: dict[int, int] = {}
    tokens: dict[int, list[int]] = {}
    num_finished = num_aborted = 0
    while waiting or engine.has_unfinished:
        while waiting and rng.random() < 0.4:
            index = waiting.pop()
            expected[engine.add_request(draw_request(index))] = index
        for output in engine.step():
            written = tokens.setdefault(output.request_id, [])
            written += output.token_ids
            if output.completion is not None:
                index = expected.pop(output.request_id)
                assert output.completion == alone(index)
                assert written == output.completion.token_ids
                num_finished += 1
        if expected and rng.random() < 0.02:
            aborted = rng.choice(list(expected))
            assert engine.abort(aborted)
            assert not engine.abort(aborted)
            del expected[aborted]
            num_aborted += 1
        if rng.random() < 0.01:
            engine.release()
    assert not expected
    runners = engine._runner, engine.teacher.runner
    for blocks in (runner.prefiller.blocks for runner in runners):
        assert blocks.num_free == blocks.num_blocks, "no block is lost"
    schedulers = engine._loop.scheduler, engine.teacher.scheduler
    return {
        "finished": num_finished,
        "aborted": num_aborted,
        "preemptions": sum(scheduler.num_preemptions for scheduler in schedulers),
        "evictions": sum(scheduler.num_evictions for scheduler in schedulers),
    }


@pytest.mark.parametrize("seed", range(NUM_DEFAULT))
def test_a_sample_is_that_of_its_request_alone_in_a_random_schedule(seed: int):
    run_schedule(seed)


@pytest.mark.slow
def test_many_random_schedules_preempt_evict_and_abort_and_lose_nothing():
    totals = dict.fromkeys(("finished", "aborted", "preemptions", "evictions"), 0)
    for seed in range(NUM_DEFAULT, NUM_DEFAULT + NUM_SLOW):
        for name, count in run_schedule(seed).items():
            totals[name] += count
    assert min(totals.values()) > 20, totals


def test_a_mixed_batch_gives_each_request_what_it_gets_alone():
    indices = [index % NUM_REQUESTS for index in range(64)]
    completions = build(64, 400).generate([draw_request(index) for index in indices])
    assert completions == [alone(index) for index in indices]
    assert sum(completion.num_calls for completion in completions) > 20
