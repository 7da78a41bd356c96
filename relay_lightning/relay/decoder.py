"""The one relay loop: student and teacher write completions together, many rows at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import torch

from relay_lightning.engine.base import TokenEngine
from relay_lightning.engine.cuda_graphs import Capture, CudaCapture
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.engine.turns import DECODING
from relay_lightning.relay.accounting import DecodeStats
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.policies import Policy, make_policy
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.rows import RelayRequest
from relay_lightning.relay.run import DecodeRun, RunOptions
from relay_lightning.types import Completion, Prompt

__all__ = ["RelayDecoder", "RelayRequest"]

logger = logging.getLogger(__name__)

CUDA_STEPS_PER_LOOK = 4
"""A look waits for the device and then leaves it idle for some Python; a row that has stopped runs idle until the next
look, which costs nothing while others run. A guess, to be measured."""


class RelayDecoder:
    """Decodes through one pair of engines. `stats` holds the counts and seconds of the last `generate`."""

    def __init__(
        self,
        student: TokenEngine,
        teacher: TokenEngine | None,
        protocol: CompiledProtocol,
        *,
        bridge: TextBridge | None = None,
        num_slots: int = 64,
        steps_per_look: int | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """bridge: between the vocabularies of student and teacher; None where they share one.

        num_slots: completions in flight, halved for good whenever memory does not suffice. steps_per_look: decode steps
        between two looks of the host at the rows; by default `CUDA_STEPS_PER_LOOK` on a GPU and 1 elsewhere.
        cuda_graphs: on a GPU, whether decode steps are captured; a step that cannot be is run as it is, with a warning.

        Raises ValueError when the protocol is not compiled for the student's vocabulary or a number is below 1.
        """
        if steps_per_look is None:
            steps_per_look = CUDA_STEPS_PER_LOOK if student.device.type == "cuda" else 1
        if num_slots < 1 or steps_per_look < 1:
            raise ValueError(f"num_slots and steps_per_look must be at least 1, not {num_slots} and {steps_per_look}")
        if protocol.vocab_size != student.vocab_size:
            raise ValueError(
                f"the protocol is compiled for {protocol.vocab_size} token ids and the student's logits have"
                f" {student.vocab_size}; use CallProtocol().compile(tokenizer, vocab_size=...)"
            )
        self.student = student
        self.teacher = teacher
        self.protocol = protocol
        self.bridge = bridge
        self.num_slots = num_slots
        self.steps_per_look = steps_per_look
        self.cuda_graphs = cuda_graphs
        self.stats = DecodeStats()

    def generate(
        self,
        requests: Sequence[RelayRequest],
        sampling: SamplingParams,
        *,
        teacher_sampling: SamplingParams | None = None,
        seed: int = 0,
        policy: str | Policy = "command",
        max_calls: int | None = None,
        max_call_tokens: int | None = None,
        eos_policy: Literal["finish", "return"] = "finish",
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """The completions in the order of the requests.

        teacher_sampling: as `sampling` by default; its token budget is not used. policy: who writes next
        (`make_policy`). max_calls: calls of one completion at most, max_call_tokens: tokens of one call at most; None
        is no limit, and neither binds a policy that gives the teacher the whole completion. eos_policy: whether the
        teacher's end-of-sequence token inside a span finishes the completion or returns control to the student.
        on_progress is told how many completions are finished, whenever that grows.

        Raises ValueError for a prompt that a model cannot read (naming its id) and for an argument out of range,
        RuntimeError when memory does not even suffice for one slot, or when called from `on_progress` of the same pair.
        Calls of several threads take turns.
        """
        options = RunOptions(
            sampling,
            teacher_sampling or sampling,
            seed,
            make_policy(policy),
            max_calls,
            max_call_tokens,
            eos_policy,
            self.num_slots,
            self.steps_per_look,
        )
        self._check(options, requests)
        # A session may be a matter of all processes, so it is opened even for no requests.
        with DECODING, self.student.session(), self.teacher.session() if self.teacher else nullcontext():
            self.stats = DecodeStats()
            return self._decode(requests, options, on_progress or (lambda _: None))

    def _decode(
        self, requests: Sequence[RelayRequest], options: RunOptions, on_progress: Callable[[int], None]
    ) -> list[Completion]:
        """All completions. Those cut off by a lack of memory are begun again with fewer slots, and come out the same:
        a draw depends on its request, not on the rows beside it."""
        finished: dict[int, Completion] = {}
        while rest := [index for index in range(len(requests)) if index not in finished]:
            options = replace(options, num_slots=min(self.num_slots, len(rest)))
            outcomes = self._run([requests[index] for index in rest], options, on_progress, len(finished))
            finished |= {index: done for index, done in zip(rest, outcomes, strict=True) if done is not None}
        return [finished[index] for index in range(len(requests))]

    def _run(
        self,
        requests: Sequence[RelayRequest],
        options: RunOptions,
        on_progress: Callable[[int], None],
        num_finished_before: int,
    ) -> list[Completion | None]:
        """The completion of each request, None where memory ran out first."""
        start_s, run, num_finished = time.perf_counter(), None, 0
        try:
            run = DecodeRun(
                self.student, self.teacher, self.protocol, requests, options, self.bridge, self._new_capture()
            )
            while run.is_live:
                run.advance()
                if run.num_finished > num_finished:
                    num_finished = run.num_finished
                    on_progress(num_finished_before + num_finished)
        except torch.OutOfMemoryError as error:
            self._halve_slots(options.num_slots, error)
        if run is None:  # not even begun
            return [None] * len(requests)
        self.stats += run.stats(time.perf_counter() - start_s)
        return run.outcomes

    def _new_capture(self) -> Capture | None:
        """What makes the graphs of a run."""
        device = self.student.device
        return CudaCapture(device) if self.cuda_graphs and device.type == "cuda" else None

    def _halve_slots(self, num_slots: int, error: torch.OutOfMemoryError) -> None:
        if num_slots == 1:
            raise RuntimeError(
                "Memory does not suffice to decode a single completion; allow fewer tokens, or load smaller models."
            ) from error
        self.num_slots = num_slots // 2
        logger.warning("Out of memory with %d slots: decoding goes on with %d.", num_slots, self.num_slots)

    def _check(self, options: RunOptions, requests: Sequence[RelayRequest]) -> None:
        """What is wrong with a call, before anything is computed."""
        if options.policy.needs_teacher and self.teacher is None:
            raise ValueError(
                f"{type(options.policy).__name__} needs a teacher and there is none; use policy='teacher_free'"
            )
        if options.max_calls is not None and options.max_calls < 0:
            raise ValueError(f"max_calls must be at least 0 or None, not {options.max_calls}")
        if options.max_call_tokens is not None and options.max_call_tokens < 1:
            raise ValueError(f"max_call_tokens must be at least 1 or None, not {options.max_call_tokens}")
        if options.eos_policy not in ("finish", "return"):
            raise ValueError(f"eos_policy={options.eos_policy!r} is unknown; it is 'finish' or 'return'")
        for request in requests:
            self._check_prompt(request.prompt, options.policy.needs_teacher)

    def _check_prompt(self, prompt: Prompt, needs_teacher: bool) -> None:
        """Raises ValueError for a prompt that is empty, that leaves no room in a model's context, or that holds an id
        that a model does not have."""
        if not prompt.token_ids:
            raise ValueError(f"prompt {prompt.prompt_id} is empty")
        readers: list[tuple[str, TokenEngine, Sequence[int]]] = [("student", self.student, prompt.token_ids)]
        if self.teacher is not None and needs_teacher:
            token_ids = self.bridge.encode_prompt(prompt) if self.bridge else prompt.token_ids
            readers.append(("teacher", self.teacher, token_ids))
        for name, engine, token_ids in readers:
            if unknown := [token for token in token_ids if not 0 <= token < engine.vocab_size]:
                raise ValueError(
                    f"prompt {prompt.prompt_id} holds token id {unknown[0]}, and the {name}'s vocabulary ends at"
                    f" {engine.vocab_size - 1}"
                )
            if len(token_ids) >= engine.max_context:
                raise ValueError(
                    f"prompt {prompt.prompt_id} has {len(token_ids)} tokens and leaves no room"
                    f" in the {name}'s context of {engine.max_context}"
                )
