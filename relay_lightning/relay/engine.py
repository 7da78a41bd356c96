"""RelayEngine: an open loop of requests, written by a student and its teacher."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from relay_kernels.relay_step import TokenSource

from relay_lightning.engine.base import TokenModel
from relay_lightning.engine.cuda_graphs import new_capture
from relay_lightning.engine.kv_budget import KVCacheGB, num_kv_blocks, require_sizes
from relay_lightning.engine.model_runner import ModelRunner
from relay_lightning.engine.turns import DECODING
from relay_lightning.relay.accounting import DecodeStats, with_passes
from relay_lightning.relay.admission import Admission
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.relay_loop import RelayLoop
from relay_lightning.relay.requests import RelayRequest, RequestOutput
from relay_lightning.relay.teacher import Teacher
from relay_lightning.types import Completion

__all__ = ["RelayEngine", "RelayRequest", "RequestOutput"]

logger = logging.getLogger(__name__)

CUDA_STEPS_PER_SYNC = 4
"""Decode steps between two host syncs on a GPU. A row that has stopped runs idle until the next one. A guess, to be
measured."""


class RelayEngine:
    """Decodes any number of requests at once; they may come and go at any time.

    Models are in a session while requests are in flight. Keys and values keep their memory, and what they know of
    prompts, until `release`.
    """

    @torch.inference_mode(False)  # What lives longer than this call must not be an inference tensor.
    def __init__(
        self,
        student: TokenModel,
        teacher: Teacher | None,
        protocol: CompiledProtocol,
        *,
        bridge: TextBridge | None = None,
        max_num_seqs: int = 64,
        block_size: int = 16,
        kv_cache_gb: KVCacheGB = "auto",
        steps_per_sync: int | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """bridge: between the vocabularies of student and teacher; None where they share one.

        max_num_seqs: sequences in flight at most. block_size: tokens of a KV block, a multiple of 16. kv_cache_gb:
        memory for the keys and values of both models. steps_per_sync: decode steps between two host syncs; by default
        `CUDA_STEPS_PER_SYNC` on a GPU and 1 elsewhere. cuda_graphs: on a GPU, capture decode steps; a step that cannot
        be captured is run as it is, with a warning.

        Raises ValueError when the protocol is not compiled for the student's vocabulary or a number is out of range.
        """
        device = student.device
        if steps_per_sync is None:
            steps_per_sync = CUDA_STEPS_PER_SYNC if device.type == "cuda" else 1
        require_sizes(max_num_seqs, kv_cache_gb, block_size)
        if steps_per_sync < 1:
            raise ValueError(f"steps_per_sync must be at least 1, not {steps_per_sync}")
        if protocol.vocab_size != student.vocab_size:
            raise ValueError(
                f"the protocol is compiled for {protocol.vocab_size} token ids and the student's logits have"
                f" {student.vocab_size}; use CallProtocol().compile(tokenizer, vocab_size=...)"
            )
        self.student = student
        self.teacher = teacher
        self.protocol = protocol
        self.bridge = bridge
        self.max_num_seqs = max_num_seqs
        self.block_size = block_size
        self.kv_cache_gb = kv_cache_gb
        self.cuda_graphs = cuda_graphs
        self._admission = Admission(student, teacher, protocol, bridge)
        num_token_ids, num_teacher_ids = self._admission.num_token_ids
        capture = new_capture(device) if cuda_graphs else None
        if teacher is not None:
            teacher.configure(max_num_seqs, block_size, num_teacher_ids, steps_per_sync, capture)
        table = protocol.table_of(num_token_ids)
        self._runner = ModelRunner(
            student, TokenSource.STUDENT, max_num_seqs, block_size, num_token_ids, table, capture
        )
        self._loop = RelayLoop(self._runner, teacher, protocol, bridge, steps_per_sync)
        self._num_requests = 0
        self._num_blocks = 0
        """KV blocks of each model; 0 when they have no memory."""
        self._most_blocks: int | None = None
        """Blocks for which memory is known to suffice, once it has not."""
        self._is_open = False
        self._is_generating = False

    @property
    def has_unfinished(self) -> bool:
        return bool(self._loop.sequences or self._loop.finished)

    def is_in_flight(self, request_id: int) -> bool:
        """Returns True until a request's completion has been returned, or it has been aborted."""
        return request_id in self._loop.sequences or request_id in self._loop.finished

    @property
    def stats(self) -> DecodeStats:
        """Counts and seconds since the last `generate` began."""
        teacher = None if self.teacher is None else self.teacher.stats
        return with_passes(self._loop.stats, self._runner.stats, teacher)

    def add_request(self, request: RelayRequest) -> int:
        """Queues a request and returns its id.

        Raises ValueError, naming the prompt's id, for one that a model cannot read or that never fits the KV blocks;
        others go on.
        """
        with DECODING:
            self.acquire()
            sequence = self._admission.sequence_of(request, self._num_requests, self._num_blocks * self.block_size)
            self._num_requests += 1
            self._loop.add(sequence)
            return sequence.request_id

    def abort(self, request_id: int) -> bool:
        """Drops a request and gives its blocks back; returns False if no such request is in flight."""
        with DECODING:
            was_in_flight = self.is_in_flight(request_id)
            self._loop.abort(request_id)
            self._close_if_idle()
            return was_in_flight

    def step(self) -> list[RequestOutput]:
        """Runs the next model for one decode step, or a few on a GPU, and returns what is new of each request."""
        with DECODING:
            if self._loop.sequences:
                self._advance()
            outputs = self._loop.report()
            self._close_if_idle()
            return outputs

    def generate(
        self, requests: Sequence[RelayRequest], on_progress: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Returns the completions in the order of the requests.

        on_progress is told how many completions are finished, whenever that grows. Raises ValueError as `add_request`
        does, before anything is decoded, and RuntimeError when memory does not even suffice for one sequence, or when
        called from `on_progress`. Calls of several threads take turns.
        """
        ids: list[int] = []
        done: dict[int, Completion] = {}
        with DECODING:
            self._begin_generate()
            try:
                self.acquire()  # Even for no requests: a session may be a matter of all processes.
                for request in requests:
                    ids.append(self.add_request(request))
                while len(done) < len(ids):
                    self._advance()
                    finished = self._loop.take_finished(ids)
                    done |= finished
                    if finished and on_progress is not None:
                        on_progress(len(done))
            finally:
                for request_id in ids:
                    self.abort(request_id)
                self._is_generating = False
                self._close_if_idle()
        return [done[request_id] for request_id in ids]

    @torch.inference_mode(False)
    @torch.no_grad()
    def acquire(self) -> None:
        """Opens the models, and allocates keys and values if they have no memory; done by itself where needed."""
        with DECODING:
            if not self._is_open:
                self._is_open = True
                self._runner.open()
                if self.teacher is not None:
                    self.teacher.open()
            if not self._num_blocks:
                self._allocate(self._blocks_that_fit())

    def release(self) -> None:
        """Gives the memory of keys and values back, for instance while weights are updated. Requests in flight are
        read again when they go on."""
        with DECODING:
            self._loop.scheduler.evict_all()
            self._allocate(0)
            self._close_if_idle()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _advance(self) -> None:
        """Runs one turn of the loop."""
        start_s = time.perf_counter()
        self.acquire()
        try:
            self._loop.advance()
        except torch.OutOfMemoryError as error:
            self._loop.recover()
            self._halve_blocks(error)
        except BaseException:
            self._loop.recover()  # Requests in flight can go on.
            raise
        self._loop.stats.wall_s += time.perf_counter() - start_s

    def _blocks_that_fit(self) -> int:
        contexts, bytes_per_token = [self.student.max_context], self.student.kv_bytes_per_token()
        if self.teacher is not None and (teacher_bytes := self.teacher.kv_bytes_per_token()):
            contexts.append(self.teacher.max_context)
            bytes_per_token += teacher_bytes
        most = self._most_blocks or self.max_num_seqs * -(-max(contexts) // self.block_size)
        return num_kv_blocks(self.kv_cache_gb, bytes_per_token, self.block_size, most, self.student.device)

    def _allocate(self, num_blocks: int) -> None:
        self._runner.allocate(num_blocks)
        if self.teacher is not None:
            self.teacher.allocate(num_blocks)
        self._num_blocks = num_blocks

    def _halve_blocks(self, error: torch.OutOfMemoryError) -> None:
        """Begins again with half the blocks. No sample changes: a draw depends on its request, not on memory."""
        before, self._most_blocks = self._num_blocks, self._num_blocks // 2
        if self._most_blocks * self.block_size < self._admission.longest(self._loop.sequences.values()):
            raise RuntimeError(
                "Memory does not suffice to decode a single completion; allow fewer tokens, or load smaller models."
            ) from error
        logger.warning("Out of memory with %d KV blocks: decoding goes on with %d.", before, self._most_blocks)
        self._allocate(self._most_blocks)

    def _begin_generate(self) -> None:
        if self._is_generating:
            raise RuntimeError(
                "this relay is decoding already: generate cannot be called inside a generate of the same pair,"
                " such as from its on_progress"
            )
        self._is_generating = True
        self._loop.stats = DecodeStats()
        self._runner.stats.reset()
        if self.teacher is not None:
            self.teacher.stats.reset()

    def _close_if_idle(self) -> None:
        if self._is_open and not self._is_generating and not self._loop.sequences:
            self._is_open = False
            if self.teacher is not None:
                self.teacher.close()
            self._runner.close()
