"""Decoding that runs out of memory: it goes on with fewer KV blocks, and nothing of what it gives is different."""

from __future__ import annotations

import logging
from random import Random

import pytest
import torch
from fake_model import FakeModel, UniformEngine, relay_engine
from small_vocabulary import VOCAB_SIZE, small_protocol
from torch import Tensor

from relay_lightning.engine.kv_budget import GB
from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.policies import RandomTokenPolicy
from relay_lightning.relay.requests import CallLimits, RelayRequest
from relay_lightning.types import Prompt

SAMPLED = SamplingParams(max_completion_tokens=20, temperature=1.0)
NUM_REQUESTS, BLOCK_SIZE, ENOUGH = 16, 16, 10**6
FEWEST = 3
"""Blocks of the longest sequence: 22 tokens, and the spare room of the teacher's context."""


def short_texts(context: tuple[int, ...]) -> Tensor:
    """Logits that depend on the context alone, under which texts end now and then."""
    rng = Random(str(context))
    return torch.tensor([rng.gauss(0.0, 1.0) for _ in range(VOCAB_SIZE)])


class SmallModel(FakeModel):
    """Has memory for so many blocks; with a larger cache it runs out of it after `num_good_passes` passes."""

    def __init__(self, max_blocks: int = ENOUGH, num_good_passes: int = 0) -> None:
        super().__init__(short_texts, vocab_size=VOCAB_SIZE)
        self.max_blocks = max_blocks
        self.num_good_passes = num_good_passes
        self.num_failures = 0
        self.num_blocks_tried: list[int] = []
        self.prompts_read: set[int] = set()
        """First tokens of the contexts that were read."""

    def _read(self, token_ids: Tensor, cache: PagedKVCache, layer: int) -> list[tuple[int, ...]]:
        if self.num_blocks_tried[-1:] != [cache.num_blocks]:
            self.num_blocks_tried.append(cache.num_blocks)
            self.passes_left = self.num_good_passes
        if cache.num_blocks > self.max_blocks:
            self.passes_left -= 1
            if self.passes_left < 0:
                self.num_failures += 1
                raise torch.OutOfMemoryError("no memory for a pass")
        contexts = super()._read(token_ids, cache, layer)
        self.prompts_read |= {context[0] for context in contexts if context}
        return contexts


def engine_of(student: SmallModel, teacher: SmallModel, num_blocks: int) -> UniformEngine:
    num_bytes = num_blocks * BLOCK_SIZE * (student.kv_bytes_per_token() + teacher.kv_bytes_per_token())
    return relay_engine(student, teacher, small_protocol(), max_num_seqs=NUM_REQUESTS, kv_cache_gb=num_bytes / GB)


def requests() -> list[RelayRequest]:
    """Completions that hand over at random. The first token of a prompt names it."""
    common = {"policy": RandomTokenPolicy(3, 0.2), "limits": CallLimits(eos_policy="return"), "seed": 3}
    return [RelayRequest(Prompt(index, (2 + index, 3)), SAMPLED, **common) for index in range(NUM_REQUESTS)]


@pytest.mark.parametrize("failing", ["student", "teacher"])
@pytest.mark.parametrize("num_good_passes", [0, 1, 7])
def test_completions_are_those_of_an_engine_that_has_enough_when_memory_runs_out(
    num_good_passes: int, failing: str, caplog: pytest.LogCaptureFixture
):
    sober = engine_of(SmallModel(), SmallModel(), 8)
    expected = sober.generate(requests())
    assert any(completion.spans for completion in expected)
    models = {"student": SmallModel(), "teacher": SmallModel(), failing: SmallModel(8, num_good_passes)}
    engine, progress = engine_of(**models, num_blocks=32), list[int]()
    with caplog.at_level(logging.WARNING):
        assert engine.generate(requests(), progress.append) == expected
    assert models[failing].num_blocks_tried[-1] == 8
    assert [record.getMessage() for record in caplog.records] == [
        "Out of memory with 32 KV blocks: decoding goes on with 16.",
        "Out of memory with 16 KV blocks: decoding goes on with 8.",
    ]
    assert progress[-1] == NUM_REQUESTS
    assert progress == sorted(set(progress))
    assert engine.stats.num_tokens == sober.stats.num_tokens, "a token of a completion counts once"


@pytest.mark.parametrize("failing", ["student", "teacher"])
def test_what_was_finished_is_not_decoded_again(failing: str):
    models = {"student": SmallModel(), "teacher": SmallModel(), failing: SmallModel(8, 20)}
    engine = engine_of(**models, num_blocks=32)
    first_token = {engine.add_request(request): request.prompt.token_ids[0] for request in requests()}
    finished, finished_before = set[int](), None
    while engine.has_unfinished:
        done = {output.request_id for output in engine.step() if output.is_finished}
        finished |= {first_token[request_id] for request_id in done}
        if models[failing].num_failures and finished_before is None:
            finished_before = set(finished)
            for model in models.values():
                model.prompts_read.clear()
    assert finished == set(first_token.values())
    assert finished_before
    assert not finished_before & (models["student"].prompts_read | models["teacher"].prompts_read)


def test_blocks_stay_few_for_the_next_rollout(caplog: pytest.LogCaptureFixture):
    teacher = SmallModel(8)
    engine = engine_of(SmallModel(), teacher, 32)
    expected = engine.generate(requests())
    caplog.clear()
    for _ in range(2):
        assert engine.generate(requests()) == expected
        engine.release()
    assert teacher.num_blocks_tried == [32, 16, 8]
    assert not caplog.records


def test_a_single_completion_that_does_not_fit_is_an_error():
    teacher = SmallModel(FEWEST - 1)
    engine = engine_of(SmallModel(), teacher, 8)
    with pytest.raises(RuntimeError, match="does not suffice to decode a single completion"):
        engine.generate(requests())
    assert teacher.num_blocks_tried == [8, 4]
    assert not engine.has_unfinished
    teacher.max_blocks = ENOUGH
    assert engine.generate(requests()) == engine_of(SmallModel(), SmallModel(), 32).generate(requests())


def test_requests_in_flight_do_not_wait_for_ever_when_less_memory_is_free_than_before(monkeypatch) -> None:
    model = FakeModel(short_texts, vocab_size=VOCAB_SIZE)
    engine = relay_engine(model, None, small_protocol())
    engine.add_request(RelayRequest(Prompt(0, (2,) * 40), SAMPLED, policy="teacher_free"))
    engine.step()
    engine.release()
    monkeypatch.setattr("relay_lightning.engine.kv_budget.auto_bytes", lambda _: 8 * 32)
    with pytest.raises(RuntimeError, match="does not suffice to decode a single completion"):
        engine.step()
