"""Prefiller: gives contexts their KV blocks and has the model read what they lack.

Shapes: R rows, N rows of a pass, T tokens of a row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from relay_lightning.engine.base import ForwardPass
from relay_lightning.engine.context import Context
from relay_lightning.engine.kv_cache import BlockManager, PagedKVCache, Prefix
from relay_lightning.engine.runner_stats import RunnerStats

MAX_CHUNK_TOKENS = 16384
"""Tokens of one prefill pass, padding included: bounds its activations."""
CHUNK_COST = 100
"""Cost of a pass beyond its tokens, in tokens. Measured about 100 for the embedded pair on a CPU; as many are to be
expected of an 8 B model on a GPU, whose weights take as long to read as that many tokens to compute."""


class Prefiller:
    """Contexts are reserved one by one, and read together by `run`, each prompt that they share once."""

    def __init__(self, cache: PagedKVCache, stats: RunnerStats) -> None:
        self._cache = cache
        self._stats = stats
        self.blocks = BlockManager(cache.num_blocks, cache.block_size)
        self._plan: list[tuple[int, Context]] = []
        """Reserved contexts, and in which wave of passes each is read: after those that fill blocks it shares."""
        self._waves: dict[int, int] = {}
        """Wave that fills a block."""
        self._copies: list[tuple[int, int, int]] = []
        """(wave, source, target): blocks to be copied before a wave."""
        self._table_entries: list[tuple[int, int, int]] = []
        """(row, column, block) entries that the device's block table lacks."""

    def reserve(self, context: Context, num_steps: int, spare: int = 0) -> bool:
        """Gives a context that is to be read, and then decoded, its blocks; False unless `spare` more are free.

        A context without blocks shares what is known of its prompt, blocks included that the same prefill fills.
        """
        if context.blocks:
            if not self.extend(context, num_steps):
                return False
            context.num_cached = min(context.num_cached, len(context.token_ids) - 1)
            self._plan.append((0, context))
            return True
        token_ids = context.token_ids[: min(context.num_prompt_tokens, len(context.token_ids) - 1)]
        prefix = self.blocks.find_prefix(token_ids)
        num_shared = len(prefix.blocks)
        num_needed = self._num_blocks(context, num_steps) - num_shared
        if prefix.tail is not None and self.blocks.num_free < num_needed + spare:
            self.blocks.release([prefix.tail])  # It may be one of the blocks that are needed.
            prefix = Prefix(prefix.blocks)
        held = prefix.blocks if prefix.tail is None else [*prefix.blocks, prefix.tail]
        if self.blocks.num_free < num_needed + spare:
            self.blocks.release(held)
            return False
        context.blocks = prefix.blocks + self.blocks.allocate(num_needed)
        wave = 1 + max((self._waves.get(block, -1) for block in held), default=-1)
        if prefix.tail is not None:
            self._copies.append((wave, prefix.tail, context.blocks[num_shared]))
        context.num_cached = num_shared * self.blocks.block_size + prefix.num_tail_tokens
        self._stats.num_shared_prefill_tokens += context.num_cached
        for block in self.blocks.register(token_ids, context.blocks):
            self._waves[block] = wave
        self._place(context, 0)
        self._plan.append((wave, context))
        return True

    def extend(self, context: Context, num_steps: int) -> bool:
        """Gives a context blocks for so many decode steps; False if too few are free."""
        num_held = len(context.blocks)
        count = self._num_blocks(context, num_steps) - num_held
        if count > 0:
            if self.blocks.num_free < count:
                return False
            context.blocks += self.blocks.allocate(count)
            self._place(context, num_held)
        return True

    def evict(self, context: Context) -> None:
        """Takes a context's blocks; it has to be read again before it goes on."""
        self.blocks.release(context.blocks)
        context.blocks = []
        context.num_cached = 0

    def update_table(self) -> None:
        """Writes new blocks to the device's block table."""
        self._cache.set_blocks(self._table_entries)
        self._table_entries = []

    def run(self, forward: ForwardPass) -> list[Context]:
        """Reads all reserved contexts, all but the last token of each, in as few passes as their lengths allow.

        Returns them.
        """
        if not self._plan:
            return []
        start_s = time.perf_counter()
        plan, copies = self._plan, self._copies
        self._plan, self._copies, self._waves = [], [], {}
        self.update_table()
        try:
            for wave in range(max(wave for wave, _ in plan) + 1):
                self._cache.copy_blocks([(source, target) for at, source, target in copies if at == wave])
                self._read([context for at, context in plan if at == wave], forward)
        except BaseException:
            self.blocks.forget()  # Some of the blocks that were registered have not been filled.
            raise
        finally:
            self.blocks.release([source for _, source, _ in copies])
        self._stats.num_prefill_tokens += len(plan)
        self._stats.prefill_s += time.perf_counter() - start_s
        return [context for _, context in plan]

    def _read(self, contexts: Sequence[Context], forward: ForwardPass) -> None:
        """Feeds each context's missing tokens but the last, in passes over rows of similar length."""
        if contexts:
            rows = self._tensor([context.row for context in contexts])
            self._cache.lengths[rows] = self._tensor([context.num_cached for context in contexts])
        queue = [context for context in contexts if context.num_cached < len(context.token_ids) - 1]
        queue.sort(key=lambda context: context.num_cached - len(context.token_ids))
        for count in plan_chunks([len(context.token_ids) - 1 - context.num_cached for context in queue]):
            chunk, queue = queue[:count], queue[count:]
            pieces = [context.token_ids[context.num_cached : -1] for context in chunk]
            width = len(pieces[0])
            token_ids = self._tensor([piece + [0] * (width - len(piece)) for piece in pieces])
            rows = self._tensor([context.row for context in chunk])
            longest = max(context.num_cached for context in chunk) + width
            num_new = self._tensor([len(piece) for piece in pieces])
            positions = self._cache.begin(rows, num_new, width, min(longest, self._cache.max_length))
            forward.extend(token_ids, positions, self._cache)
            self._stats.num_chunks += 1
            self._stats.num_prefill_tokens += sum(map(len, pieces))
        for context in contexts:
            context.num_cached = len(context.token_ids) - 1

    def _num_blocks(self, context: Context, num_steps: int) -> int:
        """Returns how many blocks a context holds after so many decode steps, each of which reads one token."""
        return max(1, self.blocks.blocks_for(min(context.num_tokens - 1 + num_steps, context.max_tokens - 1)))

    def _place(self, context: Context, first_column: int) -> None:
        """Notes the blocks of a context from `first_column` on for the device's block table."""
        blocks = context.blocks[first_column:]
        self._table_entries += [(context.row, first_column + index, block) for index, block in enumerate(blocks)]

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._cache.lengths.device)


def plan_chunks(lengths: Sequence[int]) -> list[int]:
    """Returns how many rows go into each pass, for rows of these lengths in descending order, at the least cost.

    A pass costs its rows times its longest length, padding included, plus `CHUNK_COST`; it holds at most
    `MAX_CHUNK_TOKENS`, or one row.
    """
    num_rows = len(lengths)
    cost = [0] * (num_rows + 1)  # of the rows from here on
    count = [0] * num_rows
    for first in reversed(range(num_rows)):
        width = lengths[first]
        most = min(num_rows - first, max(1, MAX_CHUNK_TOKENS // width))
        cost[first], count[first] = min((CHUNK_COST + n * width + cost[first + n], n) for n in range(1, most + 1))
    chunks, first = [], 0
    while first < num_rows:
        chunks.append(count[first])
        first += count[first]
    return chunks
