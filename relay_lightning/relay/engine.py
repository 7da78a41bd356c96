"""RelayEngine: an open loop of requests, written by a student and its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from relay_kernels.relay_step import TokenSource

from relay_lightning.engine.base import TokenModel
from relay_lightning.engine.cuda_graphs import new_capture
from relay_lightning.engine.kv_budget import KVCacheGB, require_sizes
from relay_lightning.engine.model_runner import ModelRunner
from relay_lightning.engine.turns import DECODING
from relay_lightning.relay.accounting import DecodeStats, with_passes
from relay_lightning.relay.admission import Admission
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.engine_memory import EngineMemory
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.relay_loop import RelayLoop
from relay_lightning.relay.requests import RelayRequest, RequestOutput
from relay_lightning.relay.teacher import Teacher
from relay_lightning.types import Completion

__all__ = ["RelayEngine", "RelayRequest", "RequestOutput"]

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
        block_size: int = 64,
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
        num_ids, num_teacher_ids = self._admission.num_token_ids
        capture = new_capture(device) if cuda_graphs else None
        if teacher is not None:
            teacher.configure(max_num_seqs, block_size, num_teacher_ids, steps_per_sync, capture)
        table = protocol.table_of(num_ids)
        self._runner = ModelRunner(student, TokenSource.STUDENT, max_num_seqs, block_size, num_ids, table, capture)
        self._loop = RelayLoop(self._runner, teacher, protocol, bridge, steps_per_sync)
        self._num_requests = 0
        self._memory = EngineMemory(self._runner, teacher, kv_cache_gb)
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
            try:
                self.acquire()
                sequence = self._admission.sequence_of(request, self._num_requests, self._memory.num_tokens)
                self._num_requests += 1
                self._loop.add(sequence)
            finally:
                self._close_if_idle()
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
                with self._turn():
                    self._loop.advance()
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
                    with self._turn():
                        self._loop.advance()
                    finished = self._loop.take_finished(ids)
                    done |= finished
                    if finished and on_progress is not None:
                        on_progress(len(done))
            finally:
                for request_id in ids:
                    self._loop.abort(request_id)
                self._is_generating = False
                self._close_if_idle()
        return [done[request_id] for request_id in ids]

    def acquire(self) -> None:
        """Opens the models, and allocates keys and values if they have no memory; done by itself where needed."""
        with DECODING:
            self._memory.acquire(self._longest)

    def release(self) -> None:
        """Gives the memory of keys and values back, for instance while weights are updated. Requests in flight are
        read again when they go on."""
        with DECODING:
            self._loop.scheduler.evict_all()
            self._memory.allocate(0)
            self._close_if_idle()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Within it the loop can take a turn; requests in flight can go on if that fails.

        Where memory runs out the loop begins again with fewer KV blocks. No sample changes: a draw depends on its
        request, not on memory.
        """
        start_s = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():  # What outlives a turn must not be an inference tensor.
            self._memory.acquire(self._longest)
            try:
                yield
            except torch.OutOfMemoryError:
                self._loop.recover()
                self._memory.halve(self._longest())
            except BaseException:
                self._loop.recover()
                raise
        self._loop.stats.wall_s += time.perf_counter() - start_s

    def _longest(self) -> int:
        """Tokens that the longest sequence in flight may have."""
        return self._admission.longest(self._loop.sequences.values())

    def _begin_generate(self) -> None:
        if self._is_generating:
            raise RuntimeError("generate cannot be called inside a generate of the same pair, as from its on_progress")
        self._is_generating = True
        self._loop.stats = DecodeStats()
        self._runner.stats.reset()
        if self.teacher is not None:
            self.teacher.stats.reset()

    def _close_if_idle(self) -> None:
        if not self._is_generating and not self._loop.sequences:
            self._memory.close()
