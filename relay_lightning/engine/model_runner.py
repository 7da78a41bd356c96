"""ModelRunner: prefill, decode steps and sampling of one model over paged keys and values.

Shapes: R rows, N rows of a call, T tokens of a pass, V vocabulary, L longest completion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from relay_kernels.relay_step import CommandTable, RelayStepState, RowStatus, TokenSource, relay_step
from torch import Tensor

from relay_lightning.engine.base import ForwardPass, TokenModel
from relay_lightning.engine.context import Context
from relay_lightning.engine.cuda_graphs import Capture, StepGraphs
from relay_lightning.engine.kv_cache import PagedKVCache, autocast_dtype
from relay_lightning.engine.padding_ids import normalize_over_all
from relay_lightning.engine.prefiller import Prefiller
from relay_lightning.engine.runner_stats import RunnerStats
from relay_lightning.threads import decode_threads

FLASH_BLOCK_STEP = 256
"""FlashAttention reads KV blocks of a multiple of so many tokens."""

BeforeSampling = Callable[[Tensor, Tensor | None, Tensor], None]
"""Called with logits [N, V], last hidden states [N, E] or None, and rows [N], before tokens are sampled."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What has become of decoded rows, one value per row."""

    status: list[int]
    command_n: list[int]


class ModelRunner:
    """Runs one model for R rows. Device memory exists between `allocate` and `free`, a session between `open` and
    `close`; rows are decoded within both."""

    def __init__(
        self,
        model: TokenModel,
        writer: TokenSource,
        num_rows: int,
        block_size: int,
        num_token_ids: int,
        table: CommandTable | None = None,
        capture: Capture | None = None,
    ) -> None:
        """num_token_ids: only smaller ids are sampled. table: for just these.
        capture: captures decode steps in CUDA graphs; None runs each step as it is. Raises ValueError for blocks that
        the model's attention cannot read."""
        if model.attention_backend == "flash" and block_size % FLASH_BLOCK_STEP:
            raise ValueError(f"block_size is {block_size}; FlashAttention needs a multiple of {FLASH_BLOCK_STEP}")
        self.model = model
        self.writer = writer
        self.num_rows = num_rows
        self.block_size = block_size
        self.stats = RunnerStats()
        device = model.device
        self._table = None if table is None else table.to(device)
        self._num_token_ids = num_token_ids
        eos_token_ids = [token for token in model.eos_token_ids if token < self._num_token_ids]
        self._eos_token_ids = torch.tensor(eos_token_ids, dtype=torch.int64, device=device)
        self.state = RelayStepState.empty(num_rows, 0, device)
        self.cache = PagedKVCache(0, block_size, num_rows, 0, device)
        self.prefiller = Prefiller(self.cache, self.stats)
        self._graphs = None if capture is None else StepGraphs(capture, num_rows, device)
        self._forward: ForwardPass | None = None
        self._last_pass: tuple[ForwardPass, torch.dtype | None] | None = None
        """Forward pass and autocast of the last session; graphs, keys and values are valid for them alone."""
        self._session = ExitStack()
        self._weights_version = -1
        self._placed: Sequence[Context] | None = None
        """The contexts that were decoded last."""
        self._rows: Tensor | None = None
        """Their rows; None for all."""
        self._num_parameters = model.num_parameters

    def open(self) -> None:
        """Opens a session of the model; what was known of prompts is forgotten if its weights have changed."""
        if self._forward is not None:
            return
        forward = self._session.enter_context(self.model.session())
        self._forward = forward
        if self._last_pass != (forward, dtype := autocast_dtype(self.model.device.type)):
            self._last_pass = forward, dtype
            self._drop_graphs()
            self.cache.clear()
            self.prefiller.blocks.forget()
        if self._weights_version != (version := self.model.weights_version()):
            self.prefiller.blocks.forget()
            self._weights_version = version

    def close(self) -> None:
        """Ends the session."""
        self._forward = None
        self._session.close()

    def allocate(self, num_blocks: int) -> None:
        """Makes a cache of `num_blocks` blocks; 0 gives the memory back. No context may hold blocks."""
        self._drop_graphs()
        max_length = min(self.model.max_context, num_blocks * self.block_size)
        self.cache = PagedKVCache(
            num_blocks, self.block_size, self.num_rows, max_length, self.model.device, self.model.attention_backend
        )
        self.prefiller = Prefiller(self.cache, self.stats)

    def fit_completions(self, max_tokens: int) -> None:
        """Makes the state's completion buffers at least so long, doubling them, and keeps what they hold."""
        if max_tokens > self.state.max_tokens:
            self._drop_graphs()
            self.state = self.state.extended(max(max_tokens, 2 * self.state.max_tokens))

    def prefill(self) -> None:
        """Reads all contexts that have been reserved."""
        assert self._forward is not None
        contexts = self.prefiller.run(self._forward)
        if contexts:
            rows = self._tensor([context.row for context in contexts])
            self.state.last_token[rows] = self._tensor([context.token_ids[-1] for context in contexts])

    def decode(
        self,
        contexts: Sequence[Context],
        num_steps: int,
        before_sampling: BeforeSampling | None = None,
        *,
        truncates: bool = True,
        key: object = None,
    ) -> Facts:
        """Runs decode steps of the contexts' rows, each of which needs blocks for as many tokens more.

        The host reads the outcome once, after the last step. contexts: the same list stands for the same rows.
        truncates: whether any row samples with top-k, top-p or min-p. key: what `before_sampling` depends on beside
        its arguments; steps of one key share CUDA graphs.
        """
        start_s = time.perf_counter()
        self.prefiller.update_table()
        if contexts is not self._placed:
            self._placed, self._rows = contexts, self._place(contexts)
        rows = self._rows
        longest = max(context.num_tokens for context in contexts)
        with decode_threads(self._num_parameters) if self.model.device.type == "cpu" else nullcontext():
            for step in range(num_steps):
                length = min(longest + step, self.cache.max_length)
                run = partial(self._step, rows, length, before_sampling, truncates)
                if self._graphs is None:
                    run()
                else:
                    num_rows = self.num_rows if rows is None else len(rows)
                    self._graphs.run((num_rows, self.cache.columns_of(length), truncates, key), run)
        facts = self._facts(contexts, rows)
        self.stats.num_steps += num_steps
        self.stats.step_s += time.perf_counter() - start_s
        return facts

    def refresh(self, contexts: Sequence[Context]) -> Facts:
        """Reads what has become of the contexts' rows, and how many tokens they have; waits for the device."""
        return self._facts(contexts, self._tensor([context.row for context in contexts]))

    def _facts(self, contexts: Sequence[Context], rows: Tensor | None) -> Facts:
        """Reads the state of `rows` (None: all), of which the contexts' come first, in one host sync."""
        if rows is None and len(contexts) < self.num_rows:  # A graph of all rows runs those of others too.
            rows = self._tensor([context.row for context in contexts])
        state = self.state
        facts = torch.stack([state.status.long(), state.num_tokens, state.command_n])
        status, num_tokens, command_n = (facts if rows is None else facts[:, rows]).tolist()
        for context, num in zip(contexts, num_tokens, strict=False):
            context.num_written = num
        return Facts(status[: len(contexts)], command_n[: len(contexts)])

    def sync(self, contexts: Sequence[Context]) -> None:
        """Appends the tokens and log-probabilities that decode steps wrote to the contexts."""
        width = max(context.num_written - context.position for context in contexts)
        if width:
            rows = self._tensor([context.row for context in contexts])[:, None]
            starts = self._tensor([context.position for context in contexts])[:, None]
            columns = (starts + torch.arange(width, device=starts.device)).clamp(max=self.state.max_tokens)
            tokens = self.state.tokens[rows, columns].tolist()
            both = torch.stack([self.state.log_probs[rows, columns], self.state.sampling_log_probs[rows, columns]])
            for context, token_ids, log_probs, sampling in zip(contexts, tokens, *both.tolist(), strict=True):
                count = context.num_written - context.position
                context.token_ids += token_ids[:count]
                context.log_probs += log_probs[:count]
                context.sampling_log_probs += sampling[:count]
        for context in contexts:
            context.position = context.num_written
            context.num_cached = len(context.token_ids) - 1

    def stop(self, context: Context) -> None:
        """Brings a context's tokens to the host; decode steps leave its row alone from now on."""
        self.sync([context])
        self.write_rows([context], status=RowStatus.EMPTY)

    def write_rows(self, contexts: Sequence[Context], **values: Sequence[float] | float) -> None:
        """Writes fields of the state, one value for each context or one for all."""
        rows = self._tensor([context.row for context in contexts])
        for name, value in values.items():
            field = getattr(self.state, name)
            field[rows] = torch.tensor(value, dtype=field.dtype, device=field.device)

    def _step(self, rows: Tensor | None, longest: int, before_sampling: BeforeSampling | None, truncates: bool) -> None:
        """Runs one decode step of `rows` (None: all); a row that is another's turn is left alone."""
        assert self._forward is not None
        state = self.state
        status, last_token = state.status, state.last_token
        if rows is not None:
            status, last_token = status[rows], last_token[rows]
        positions = self.cache.begin(rows, (status == self.writer).long(), 1, longest)
        logits, hidden = self._forward.step(last_token[:, None], positions, self.cache)
        if before_sampling is not None:
            every = torch.arange(self.num_rows, device=logits.device) if rows is None else rows
            before_sampling(logits, hidden, every)
        num_drawable = self._num_token_ids
        num_before = state.num_tokens.clone() if num_drawable < logits.shape[1] else None
        relay_step(
            logits[:, :num_drawable],
            state,
            writer=self.writer,
            eos_token_ids=self._eos_token_ids,
            rows=rows,
            table=self._table,
            truncates=truncates,
        )
        if num_before is not None:
            normalize_over_all(state, rows, num_before, logits, num_drawable)

    def _place(self, contexts: Sequence[Context]) -> Tensor | None:
        """Returns the rows of the contexts, in their order; None for all rows. With graphs others may follow."""
        rows = [context.row for context in contexts]
        if self._graphs is not None:
            return self._graphs.place(rows)
        return None if rows == list(range(self.num_rows)) else self._tensor(rows)

    def _drop_graphs(self) -> None:
        if self._graphs is not None:
            self._graphs.clear()

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.model.device)
