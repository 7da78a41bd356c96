"""The block manager against a plain model of what each block holds: no block is lost, no prefix is wrong."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from relay_lightning.engine.block_manager import BlockManager, Prefix

NUM_OPERATIONS = 100_000


class Model:
    """Holders of blocks, and what they wrote there. Prompts are random and often begin alike."""

    def __init__(self, seed: int, num_blocks: int, block_size: int) -> None:
        self.rng = Random(seed)
        self.manager = BlockManager(num_blocks, block_size)
        self.contents: dict[int, list[int]] = {}
        """Tokens of each block that was written since it was last allocated."""
        self.holders: list[list[int]] = []
        self.num_found = Counter[str]()

    @property
    def counts(self) -> Counter[int]:
        return Counter(block for holder in self.holders for block in holder)

    def prompt(self) -> list[int]:
        """One of few beginnings, and a random rest."""
        size = self.manager.block_size
        base = [self.rng.randrange(2)] * self.rng.choice([0, 1, size - 1, size, size + 1, 3 * size])
        return base + [self.rng.randrange(2) for _ in range(self.rng.randrange(3))]

    def read_prompt(self) -> None:
        """Does what a prefill does: shares what is known, copies a tail, allocates the rest, makes it known."""
        manager, tokens, size = self.manager, self.prompt(), self.manager.block_size
        prefix = manager.find_prefix(tokens)
        self.check(prefix, tokens)
        held = prefix.blocks + ([] if prefix.tail is None else [prefix.tail])
        num_new = manager.blocks_for(len(tokens)) - len(prefix.blocks)
        if num_new > manager.num_free:
            with pytest.raises(ValueError, match="are asked for"):
                manager.allocate(num_new)
            manager.release(held)
            return
        new = manager.allocate(num_new)
        assert not set(new) & set(held)
        assert not set(new) & set(self.counts), "a block that is in use was handed out"
        blocks = prefix.blocks + new
        for column in range(len(prefix.blocks), len(blocks)):
            self.contents[blocks[column]] = tokens[column * size : (column + 1) * size]
        manager.register(tokens, blocks)
        manager.release(held[len(prefix.blocks) :])
        self.holders.append(blocks)

    def check(self, prefix: Prefix, tokens: list[int]) -> None:
        """The blocks that were found hold the beginning of `tokens`."""
        size = self.manager.block_size
        for column, block in enumerate(prefix.blocks):
            assert self.contents[block] == tokens[column * size : (column + 1) * size]
        self.num_found["full"] += len(prefix.blocks)
        if prefix.tail is not None:
            start = len(prefix.blocks) * size
            assert 0 < prefix.num_tail_tokens < size
            assert tokens[start:] == self.contents[prefix.tail][: prefix.num_tail_tokens]
            self.num_found["tail"] += 1

    def write_behind(self) -> None:
        """A holder goes on writing in a block of its own; what is known of the block stays true."""
        if self.holders:
            block = self.rng.choice(self.holders)[-1:]
            if block and self.counts[block[0]] == 1 and len(self.contents[block[0]]) < self.manager.block_size:
                self.contents[block[0]].append(self.rng.randrange(2))

    def allocate(self) -> None:
        count = self.rng.randrange(3)
        if count <= self.manager.num_free:
            blocks = self.manager.allocate(count)
            assert not set(blocks) & set(self.counts), "a block that is in use was handed out"
            self.contents |= {block: [] for block in blocks}
            self.holders.append(blocks)

    def retain(self) -> None:
        if self.holders:
            blocks = list(self.rng.choice(self.holders))
            self.manager.retain(blocks)
            self.holders.append(blocks)

    def release(self) -> None:
        if self.holders:
            self.manager.release(self.holders.pop(self.rng.randrange(len(self.holders))))

    def forget(self) -> None:
        if self.rng.random() < 0.02:
            self.manager.forget()
            assert self.manager.find_prefix(self.prompt()) == Prefix()

    def step(self) -> None:
        actions = [self.read_prompt, self.write_behind, self.allocate, self.retain, self.release, self.forget]
        self.rng.choices(actions, [6, 2, 1, 1, 8, 1])[0]()
        assert self.manager.num_free == self.manager.num_blocks - len(self.counts)


@pytest.mark.parametrize(("num_blocks", "block_size"), [(1, 2), (7, 2), (12, 4), (40, 16)])
def test_no_block_is_lost_and_every_prefix_is_true_in_random_operations(num_blocks: int, block_size: int):
    model = Model(num_blocks, num_blocks, block_size)
    for _ in range(NUM_OPERATIONS // 4):
        model.step()
    assert num_blocks == 1 or min(model.num_found["full"], model.num_found["tail"]) > 100
    while model.holders:
        model.release()
    assert sorted(model.manager.allocate(num_blocks)) == list(range(num_blocks))
    assert model.manager.num_free == 0


def test_a_block_without_references_is_found_until_it_is_allocated_anew():
    manager, tokens = BlockManager(3, 2), [1, 2, 3, 4, 5]
    blocks = manager.allocate(3)
    assert manager.register(tokens, blocks) == blocks
    manager.release(blocks)
    assert manager.find_prefix(tokens) == Prefix(blocks[:2], blocks[2], 1)
    manager.release(blocks)
    [taken] = manager.allocate(1)
    assert taken == blocks[2], "the end of a prompt is of least use to others"
    assert manager.find_prefix(tokens) == Prefix(blocks[:2])
    manager.release(blocks[:2])
    assert set(manager.allocate(2)) == set(blocks[:2])
    assert manager.find_prefix(tokens) == Prefix()


def test_blocks_of_unknown_contents_are_allocated_first():
    manager = BlockManager(4, 2)
    known = manager.allocate(2)
    manager.register([1, 2, 3, 4], known)
    manager.release(known)
    assert not set(manager.allocate(2)) & set(known)
    assert manager.find_prefix([1, 2, 3, 4]) == Prefix(known)


def test_equal_prompts_are_known_once():
    manager = BlockManager(4, 2)
    first, second = manager.allocate(2), manager.allocate(2)
    assert manager.register([1, 2, 3], first) == first
    assert manager.register([1, 2, 3], second) == []
    assert manager.find_prefix([1, 2, 3]) == Prefix(first[:1], first[1], 1)


def test_equal_tokens_behind_different_beginnings_are_different():
    manager = BlockManager(4, 2)
    blocks = manager.allocate(4)
    manager.register([1, 1, 7, 7], blocks[:2])
    manager.register([2, 2, 7, 7], blocks[2:])
    assert manager.find_prefix([2, 2, 7, 7]) == Prefix(blocks[2:])
    assert manager.find_prefix([7, 7]) == Prefix()


def test_a_block_that_is_free_cannot_be_released_again():
    manager = BlockManager(2, 2)
    blocks = manager.allocate(1)
    manager.release(blocks)
    with pytest.raises(ValueError, match=f"KV block {blocks[0]} is free already"):
        manager.release(blocks)
