"""Prompts are read once for all that begin alike, and every context finds its own tokens in its blocks."""

from __future__ import annotations

from random import Random

import pytest
import torch
from fake_model import FakeModel
from small_vocabulary import VOCAB_SIZE
from torch import Tensor

from relay_lightning.engine.context import Context
from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.prefiller import Prefiller
from relay_lightning.engine.runner_stats import RunnerStats

BLOCK_SIZE, MAX_LENGTH = 16, 128


class RecordingModel(FakeModel):
    """Keeps the contexts that each pass found in the cache."""

    def __init__(self) -> None:
        super().__init__(lambda _: torch.zeros(VOCAB_SIZE), vocab_size=VOCAB_SIZE)
        self.passes: list[list[tuple[int, ...]]] = []
        self.must_fail = False

    def _read(self, token_ids: Tensor, cache: PagedKVCache, layer: int) -> list[tuple[int, ...]]:
        if self.must_fail:
            raise ValueError("a pass failed")
        contexts = super()._read(token_ids, cache, layer)
        self.passes.append([context for context in contexts if context])
        return contexts


class Desk:
    """A prefiller and what it needs."""

    def __init__(self, num_blocks: int, num_rows: int = 8) -> None:
        self.model, self.stats = RecordingModel(), RunnerStats()
        self.cache = PagedKVCache(num_blocks, BLOCK_SIZE, num_rows, MAX_LENGTH, torch.device("cpu"))
        self.prefiller = Prefiller(self.cache, self.stats)
        self.blocks = self.prefiller.blocks

    def reserve(self, *contexts: Context, num_steps: int = 1) -> None:
        for context in contexts:
            assert self.prefiller.reserve(context, num_steps)

    def read(self, *contexts: Context, num_steps: int = 1) -> None:
        """Reserves the contexts and reads them together."""
        self.reserve(*contexts, num_steps=num_steps)
        assert self.prefiller.run(self.model) == list(contexts)
        for context in contexts:
            self.check(context)

    def check(self, context: Context) -> None:
        """All tokens but the last are in the context's blocks, and the device's table names these."""
        assert context.num_cached == len(context.token_ids) - 1
        assert self.cache.block_table[context.row, : len(context.blocks)].tolist() == context.blocks
        if context.num_cached:
            found = self.cache.keys_of(0)[context.blocks].flatten()[: context.num_cached]
            assert found.long().tolist() == context.token_ids[:-1]

    def write(self, context: Context, token: int) -> None:
        """Decodes a step, after which `token` is the newest token."""
        assert self.prefiller.extend(context, 1)
        self.prefiller.update_table()
        row = torch.tensor([context.row])
        self.cache.lengths[row] = context.num_cached
        positions = self.cache.begin(row, torch.ones(1, dtype=torch.int64), 1, MAX_LENGTH)
        self.model.step(torch.tensor([context.token_ids[-1:]]), positions, self.cache)
        context.token_ids.append(token)
        context.num_cached += 1


def letters(count: int, seed: int) -> list[int]:
    rng = Random(seed)
    return [rng.randrange(2, VOCAB_SIZE) for _ in range(count)]


def context(row: int, token_ids: list[int], room: int = 40) -> Context:
    return Context(row, row, list(token_ids), len(token_ids), len(token_ids) + room)


def test_samples_of_a_prompt_share_its_full_blocks_and_copy_its_last_one():
    desk, prompt = Desk(20), letters(40, 0)
    samples = [context(row, prompt) for row in range(3)]
    desk.read(*samples)
    assert desk.model.num_fed_tokens == 39
    assert desk.stats.num_shared_prefill_tokens == 2 * 39
    assert {tuple(sample.blocks[:2]) for sample in samples} == {tuple(samples[0].blocks[:2])}
    assert len({sample.blocks[2] for sample in samples}) == 3
    assert desk.blocks.num_free == 20 - (2 + 3)
    for step in range(12):
        for sample in samples:
            desk.write(sample, 2 + sample.row + step)
    for sample in samples:
        desk.check(sample)


def test_a_later_sample_shares_what_earlier_ones_have_left_behind():
    desk, prompt = Desk(20), letters(40, 0)
    first = context(0, prompt)
    desk.read(first)
    desk.write(first, 7)
    desk.prefiller.evict(first)
    assert (first.blocks, first.num_cached) == ([], 0)
    desk.read(context(1, prompt))
    assert desk.model.num_fed_tokens == 39 + 1
    assert desk.blocks.num_free == 20 - 3


def test_a_system_prompt_is_shared_between_different_prompts():
    desk, system = Desk(20), letters(36, 0)
    one, other = context(0, system + letters(9, 1)), context(1, system + letters(20, 2))
    desk.read(one)
    desk.read(other)
    assert one.blocks[:2] == other.blocks[:2]
    assert not set(one.blocks[2:]) & set(other.blocks[2:])
    assert desk.model.num_fed_tokens == 44 + (55 - 32)


def test_shared_blocks_are_filled_before_those_who_share_them_read_on():
    desk, text = Desk(40), letters(100, 0)
    chain = [context(row, text[:length]) for row, length in enumerate((20, 40, 60, 90))]
    strangers = [context(4, letters(30, 5)), context(5, text[:40])]
    desk.read(*chain, *strangers)
    known = [each.token_ids for each in (*chain, *strangers)]
    for each in (found for found_by_pass in desk.model.passes for found in found_by_pass):
        assert any(list(each) == token_ids[: len(each)] for token_ids in known), "a pass saw what was not there yet"
    lengths = [sorted(map(len, contexts)) for contexts in desk.model.passes]
    assert lengths == [[19, 29], [39], [59], [89]]
    assert desk.model.num_fed_tokens == 19 + (39 - 16) + (59 - 32) + (89 - 48) + 29


@pytest.mark.parametrize("length", [1, 2, 16, 17, 18, 32, 33])
def test_a_prompt_of_any_length_is_read_but_for_its_last_token(length: int):
    desk, prompt = Desk(20), letters(length, 0)
    samples = [context(row, prompt) for row in range(2)]
    desk.read(*samples)
    assert desk.model.num_fed_tokens == length - 1
    for sample in samples:
        desk.write(sample, 3 + sample.row)
        desk.check(sample)


def test_what_a_sequence_wrote_is_not_shared():
    desk, prompt = Desk(20), letters(20, 0)
    first = context(0, prompt)
    desk.read(first)
    for token in letters(30, 1):
        desk.write(first, token)
    desk.prefiller.evict(first)
    again = context(1, prompt)
    again.token_ids = list(first.token_ids)
    desk.read(again)
    assert desk.stats.num_shared_prefill_tokens == BLOCK_SIZE
    desk.check(again)


def test_a_context_that_comes_back_reads_only_what_it_lacks():
    desk = Desk(20)
    sequence = context(0, letters(20, 0))
    desk.read(sequence)
    sequence.token_ids += letters(15, 1)
    desk.read(sequence)
    assert desk.model.num_fed_tokens == 34


def test_blocks_are_reserved_for_the_steps_to_come_and_no_further_than_the_longest_length():
    desk, prompt = Desk(20), letters(16, 0)
    for row, (num_steps, num_blocks) in enumerate([(1, 1), (2, 2), (18, 3), (100, 3)]):
        sequence = context(row, prompt, room=30)
        desk.reserve(sequence, num_steps=num_steps)
        assert len(sequence.blocks) == num_blocks


def test_a_reservation_that_fails_changes_nothing():
    desk, prompt = Desk(3), letters(40, 0)
    first = context(0, prompt)
    desk.read(first)
    sample = context(1, prompt)
    assert not desk.prefiller.reserve(sample, 1)
    assert not desk.prefiller.extend(first, 20)
    assert (sample.blocks, len(first.blocks), desk.blocks.num_free) == ([], 3, 0)
    desk.prefiller.evict(first)
    assert desk.blocks.num_free == 3
    assert not desk.prefiller.reserve(sample, 1, spare=1)
    assert desk.blocks.num_free == 3
    desk.read(sample)


def test_a_prompt_fits_in_all_blocks_though_one_of_them_holds_its_end():
    desk, prompt = Desk(3), letters(40, 0)
    for row in range(3):
        sequence = context(row, prompt, room=8)
        desk.read(sequence, num_steps=8)
        desk.prefiller.evict(sequence)
    assert desk.blocks.num_free == 3


def test_what_was_to_be_read_is_not_known_when_a_pass_fails():
    desk, prompt = Desk(20), letters(40, 0)
    samples = [context(row, prompt) for row in range(3)]
    desk.reserve(*samples)
    desk.model.must_fail = True
    with pytest.raises(ValueError, match="a pass failed"):
        desk.prefiller.run(desk.model)
    for sample in samples:
        desk.prefiller.evict(sample)
    assert desk.blocks.num_free == 20
    desk.model.must_fail = False
    desk.read(*samples)
    assert desk.model.num_fed_tokens == 39


def test_random_contexts_always_find_their_own_tokens():
    rng, desk, live = Random(0), Desk(24), dict[int, Context]()
    for _ in range(300):
        for row in rng.sample(range(8), 3):
            if row in live:
                desk.prefiller.evict(live.pop(row))
        batch = []
        for row in set(range(8)) - set(live):
            length = rng.choice([1, 15, 16, 17, 33, 60])
            new = context(row, letters(60, rng.randrange(2))[:length] + letters(rng.randrange(20), rng.randrange(50)))
            if len(new.token_ids) <= 80 and desk.prefiller.reserve(new, 1):
                batch.append(new)
        desk.prefiller.run(desk.model)
        live |= {each.row: each for each in batch}
        for each in live.values():
            if rng.random() < 0.3 and len(each.token_ids) < 100 and desk.prefiller.extend(each, 1):
                desk.write(each, rng.randrange(2, VOCAB_SIZE))
            desk.check(each)
        assert desk.blocks.num_free == 24 - len({block for each in live.values() for block in each.blocks})
