"""One writer of the relay: its engine, its slots, how it catches up with a context and how it writes a token.

Shapes: S slots, N rows of a call, T tokens of a chunk, L longest completion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from relay_kernels.relay_step import CommandTable, RandomStream, RelayStepState, Writer, philox_uniform, relay_step
from torch import Tensor

from relay_lightning.engine.base import TokenEngine
from relay_lightning.engine.cuda_graphs import StepGraphs
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.padding_ids import normalize_over_all

MAX_CHUNK_TOKENS = 16384
"""Tokens of one chunk pass, padding included: bounds its activations."""
CHUNK_COST = 100
"""What a pass costs beyond its tokens, in tokens. Measured about 100 for the embedded pair on a CPU; as many are to be
expected of an 8 B model on a GPU, whose weights take as long to read as that many tokens to compute."""

AskPolicy = Callable[[Tensor, Tensor | None], None]
"""Told the logits, [N, V], of some slots, or of all (None), before tokens are drawn from them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a slot has to have read before its writer goes on."""

    slot: int
    context: list[int]
    """All of it; the last token is left for the next decode step, which feeds it."""
    num_cached: int
    """Leading tokens of the context that the slot holds already, 0 for a slot that is new to the context."""
    num_shared: int = 0
    """Leading tokens that other rows may have read too: the prompt. Only used for a new slot."""


class Side:
    """The student's or the teacher's half of a run."""

    def __init__(
        self,
        writer: Writer,
        engine: TokenEngine,
        sampling: SamplingParams,
        state: RelayStepState,
        seed: int,
        table: CommandTable | None = None,
        mask_commands: bool = False,
        num_token_ids: int | None = None,
    ) -> None:
        """num_token_ids: only smaller ids are written; None for all that the engine has. table: for just these."""
        self.writer = writer
        self.engine = engine
        self.sampling = sampling
        self.state = state
        self.seed = seed
        self.table = table
        self.mask_commands = mask_commands
        self.num_steps = 0
        self.num_chunks = 0
        self.num_prefill_tokens = 0
        self.num_shared_prefill_tokens = 0
        self.step_s = 0.0
        self.prefill_s = 0.0
        device = state.tokens.device
        self._num_token_ids = engine.vocab_size if num_token_ids is None else num_token_ids
        eos_token_ids = [token for token in engine.eos_token_ids if token < self._num_token_ids]
        self._eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.int64, device=device)
        self._prefix_in_slot: list[tuple[int, ...] | None] = [None] * state.num_slots
        self._uniforms: Tensor | None = None
        if not sampling.is_greedy and device.type == "cpu":
            self._uniforms = torch.zeros(state.num_slots, state.max_tokens)

    def draw_ahead(self, slots: Tensor) -> None:
        """Computes all draws of the completions in `slots`: on a CPU many at once cost little more than one."""
        if self._uniforms is not None:
            stream = RandomStream.STUDENT if self.writer == Writer.STUDENT else RandomStream.TEACHER
            key = (self.state.prompt_id[slots, None], self.state.sample_index[slots, None])
            self._uniforms[slots] = philox_uniform(self.seed, *key, torch.arange(self.state.max_tokens)[None], stream)

    def catch_up(self, readings: Sequence[Reading]) -> None:
        """Reads what is missing, all but the last token, in as few passes as the lengths allow; sets `last_token`."""
        start_s = time.perf_counter()
        device = self.state.tokens.device
        num_cached = [min(reading.num_cached, len(reading.context) - 1) for reading in readings]
        self._share_prefixes(readings, num_cached)
        slots = torch.tensor([reading.slot for reading in readings], device=device)
        self.engine.truncate(slots, torch.tensor(num_cached, device=device))
        missing = [
            (reading.slot, reading.context[cached:-1]) for reading, cached in zip(readings, num_cached, strict=True)
        ]
        self._read(missing)
        self.state.last_token[slots] = torch.tensor([reading.context[-1] for reading in readings], device=device)
        self.num_prefill_tokens += len(readings)
        self.prefill_s += time.perf_counter() - start_s

    def write(self, slots: Tensor | None, graphs: StepGraphs | None, ask: AskPolicy | None) -> None:
        """One decode step of `slots` (None: all), by a graph where it has been captured."""

        def step() -> None:
            logits = self._forward(slots)
            if ask is not None:
                ask(logits, slots)
            self._sample(slots, logits)

        if graphs is None:
            step()
        elif graphs.run((self.writer, None if slots is None else len(slots), self.engine.step_shape), step):
            self.engine.count_step()

    def _sample(self, slots: Tensor | None, logits: Tensor) -> None:
        """Writes a token to each row of this side from the logits of `slots` (None: all)."""
        state, sampling = self.state, self.sampling
        num_drawable = self._num_token_ids
        num_before = state.num_tokens.clone() if num_drawable < logits.shape[1] else None
        relay_step(
            logits[:, :num_drawable],
            state,
            writer="student" if self.writer == Writer.STUDENT else "teacher",
            eos_token_ids=self._eos_token_ids,
            slots=slots,
            table=self.table,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            mask_commands=self.mask_commands,
            seed=self.seed,
            uniforms=self._uniforms,
        )
        if num_before is not None:
            normalize_over_all(state, slots, num_before, logits, num_drawable, sampling.temperature)

    def _forward(self, slots: Tensor | None) -> Tensor:
        """Logits after the last token of each of `slots` (None: all), [N, V]; rows of others are meaningless."""
        status, last_token = self.state.status, self.state.last_token
        if slots is not None:
            status, last_token = status[slots], last_token[slots]
        return self.engine.step(last_token, status == self.writer, slots)

    def _share_prefixes(self, readings: Sequence[Reading], num_cached: list[int]) -> None:
        """Copies prompts into new slots that share them, read once if no slot has them; raises their num_cached."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, reading in enumerate(readings):
            if num_cached[index] == 0:
                groups.setdefault(tuple(reading.context[: reading.num_shared]), []).append(index)
        sources = {prefix: self._find_holder(prefix, groups, readings) for prefix in groups}
        owners = {prefix: ids[0] for prefix, ids in groups.items() if sources[prefix] is None and len(ids) > 1}
        if owners:
            slots = torch.tensor([readings[index].slot for index in owners.values()], device=self.state.tokens.device)
            self.engine.truncate(slots, torch.zeros_like(slots))
            self._read([(readings[index].slot, list(prefix[:-1])) for prefix, index in owners.items()])
        for prefix, indices in groups.items():
            slots_of = {readings[index].slot: index for index in indices}
            source = readings[owners[prefix]].slot if prefix in owners else sources[prefix]
            targets = [slot for slot in slots_of if slot != source]
            for slot in slots_of:
                self._prefix_in_slot[slot] = prefix
            if source is None:
                continue
            length = len(prefix) - 1
            for index in indices:
                num_cached[index] = length
            if targets and length:
                self.engine.copy_prefix(source, torch.tensor(targets, device=self.state.tokens.device), length)
            self.num_shared_prefill_tokens += length * (len(indices) - (prefix in owners))

    def _find_holder(
        self, prefix: tuple[int, ...], groups: dict[tuple[int, ...], list[int]], readings: Sequence[Reading]
    ) -> int | None:
        """A slot that holds `prefix` and is not about to be rewritten with another one."""
        rewritten = {readings[index].slot for other, ids in groups.items() if other != prefix for index in ids}
        slots = (slot for slot, held in enumerate(self._prefix_in_slot) if held == prefix and slot not in rewritten)
        return next(slots, None)

    def _read(self, missing: list[tuple[int, list[int]]]) -> None:
        """Feeds each slot its tokens, in chunks of rows of similar length."""
        queue = sorted((item for item in missing if item[1]), key=lambda item: -len(item[1]))
        device = self.state.tokens.device
        for count in plan_chunks([len(tokens) for _, tokens in queue]):
            chunk, queue = queue[:count], queue[count:]
            width = len(chunk[0][1])
            token_ids = torch.tensor([tokens + [0] * (width - len(tokens)) for _, tokens in chunk], device=device)
            num_new = torch.tensor([len(tokens) for _, tokens in chunk], device=device)
            self.engine.extend(torch.tensor([slot for slot, _ in chunk], device=device), token_ids, num_new)
            self.num_chunks += 1
            self.num_prefill_tokens += sum(len(tokens) for _, tokens in chunk)


def plan_chunks(lengths: Sequence[int]) -> list[int]:
    """How many rows go into each chunk, for rows of these lengths in descending order, at the least cost.

    A chunk costs its rows times its longest length, padding included, plus `CHUNK_COST`; it holds at most
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
