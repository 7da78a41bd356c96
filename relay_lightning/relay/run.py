"""One run of the relay loop over a list of requests: slots are filled, written to, handed over and refilled until all
are done.

Shapes: S slots, N rows of a call, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from relay_kernels.relay_step import RelayStepState, RowStatus, Writer
from torch import Tensor

from relay_lightning.engine.base import TokenEngine
from relay_lightning.engine.cuda_graphs import Capture, StepGraphs
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.accounting import DecodeStats
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.capacity import student_capacity, teacher_capacity
from relay_lightning.relay.policies import Policy, PolicyView
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.rows import FINISHED, OpenCall, RelayRequest, Row
from relay_lightning.relay.side import Side
from relay_lightning.types import Completion

NEVER = 2**62
"""A completion length that no row reaches."""
TEACHER_WEIGHT = 2
"""128 rows that call once each: 264 student and 26 teacher steps in place of 382 and 25 with a weight of 1; with 8, 178
and 55. Rows that are refilled from a queue and call four times: 312 and 192 in place of 349 and 136."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The arguments of `RelayDecoder.generate`, and the decoder's own."""

    sampling: SamplingParams
    teacher_sampling: SamplingParams
    seed: int
    policy: Policy
    max_calls: int | None
    max_call_tokens: int | None
    eos_policy: Literal["finish", "return"]
    num_slots: int
    steps_per_look: int


class DecodeRun:
    """Rows in flight, each in one slot of both caches. `advance` is the loop's body."""

    def __init__(
        self,
        student: TokenEngine,
        teacher: TokenEngine | None,
        protocol: CompiledProtocol,
        requests: Sequence[RelayRequest],
        options: RunOptions,
        bridge: TextBridge | None = None,
        capture: Capture | None = None,
    ) -> None:
        """bridge: between two vocabularies; None where teacher and student share one. capture: makes graphs of steps;
        None to run each."""
        self.protocol = protocol
        self.options = options
        self.bridge = bridge
        self.num_text_handovers = 0
        self.num_finished = 0
        self._completions: list[Completion | None] = [None] * len(requests)
        self._limits = [
            min(options.sampling.max_completion_tokens, student.max_context - len(request.prompt.token_ids))
            for request in requests
        ]
        self._teacher_prompts = [
            bridge.encode_prompt(request.prompt) if bridge else request.prompt.token_ids for request in requests
        ]
        self._queue = deque(enumerate(requests))
        num_slots = min(options.num_slots, len(requests))
        self._free_slots = list(reversed(range(num_slots)))
        self._state = RelayStepState.empty(num_slots, max(self._limits), student.device)
        self._segment_start = torch.zeros_like(self._state.num_tokens)
        self._call_floor = torch.zeros_like(self._state.num_tokens)
        """[S]: completion length below which a policy may not hand over."""
        longest_prompt = max(len(request.prompt.token_ids) for request in requests)
        longest = student_capacity(longest_prompt, options.sampling.max_completion_tokens, student.max_context)
        student.allocate(num_slots, longest)
        num_student_ids, num_teacher_ids = self._num_token_ids(teacher)
        table = protocol.table_of(num_student_ids).to(student.device)
        mask_commands = not options.policy.allows_commands or options.max_calls is not None
        self._sides = {
            Writer.STUDENT: Side(
                Writer.STUDENT,
                student,
                options.sampling,
                self._state,
                options.seed,
                table,
                mask_commands,
                num_student_ids,
            )
        }
        self._teacher_capacity = 0
        if teacher is not None and options.policy.needs_teacher:
            self._teacher_capacity = teacher_capacity(
                longest,
                max(map(len, self._teacher_prompts)),
                options.sampling.max_completion_tokens,
                teacher.max_context,
                has_bridge=bridge is not None,
            )
            teacher.allocate(num_slots, self._teacher_capacity)
            self._sides[Writer.TEACHER] = Side(
                Writer.TEACHER,
                teacher,
                options.teacher_sampling,
                self._state,
                options.seed,
                num_token_ids=num_teacher_ids,
            )
        self._graphs = None if capture is None else StepGraphs(capture, num_slots, student.device)
        self._running: dict[Writer, dict[int, Row]] = {writer: {} for writer in Writer}
        self._waiting: dict[Writer, list[Row]] = {writer: [] for writer in Writer}
        self._writer = Writer.STUDENT
        self._admit()

    def _num_token_ids(self, teacher: TokenEngine | None) -> tuple[int, int]:
        """How many ids student and teacher may write: those that the tokenizer names and that both models have.

        Over a bridge no id passes, and each is bound by its own tokenizer.
        """
        num_student_ids = self.protocol.vocabulary.num_token_ids
        if teacher is None or not self.options.policy.needs_teacher:
            return num_student_ids, 0
        if self.bridge is not None:
            return num_student_ids, min(self.bridge.teacher.num_token_ids, teacher.vocab_size)
        num_shared_ids = min(num_student_ids, teacher.vocab_size)
        return num_shared_ids, num_shared_ids

    @property
    def is_live(self) -> bool:
        return self.num_finished < len(self._completions)

    @property
    def outcomes(self) -> list[Completion | None]:
        """The completion of each request; None of one that is not finished."""
        return self._completions

    @property
    def completions(self) -> list[Completion]:
        """All that are finished, in the order of the requests."""
        return [completion for completion in self._completions if completion is not None]

    def stats(self, wall_s: float) -> DecodeStats:
        """What the run cost so far."""
        student, teacher = self._sides[Writer.STUDENT], self._sides.get(Writer.TEACHER)
        stats = DecodeStats(
            num_student_prefill_tokens=student.num_prefill_tokens,
            num_shared_prefill_tokens=student.num_shared_prefill_tokens,
            num_student_steps=student.num_steps,
            num_student_chunks=student.num_chunks,
            student_s=student.step_s,
            prefill_s=student.prefill_s,
        )
        if teacher is not None:
            stats += DecodeStats(
                num_teacher_prefill_tokens=teacher.num_prefill_tokens,
                num_shared_prefill_tokens=teacher.num_shared_prefill_tokens,
                num_teacher_steps=teacher.num_steps,
                num_teacher_chunks=teacher.num_chunks,
                teacher_s=teacher.step_s,
                prefill_s=teacher.prefill_s,
            )
        for completion in self.completions:
            stats.count(completion)
        stats.num_text_handovers = self.num_text_handovers
        stats.wall_s = wall_s
        stats.host_s = wall_s - stats.student_s - stats.teacher_s - stats.prefill_s
        return stats

    def advance(self) -> None:
        """One turn: choose a side, let its waiting rows in, write, and see what became of its rows."""
        self._choose_writer()
        self._hand_over()
        if self._running[self._writer]:
            self._look(self._write())
        self._admit()

    def _choose_writer(self) -> None:
        """The side with more rows that could run goes next, each row of the teacher's counting `TEACHER_WEIGHT` times.

        Rows gather before the pen changes hands, because a step costs few rows nearly what it costs many; but a row
        that waits long for the teacher is still running when all others have ended.
        """
        student, teacher = (len(self._running[writer]) + len(self._waiting[writer]) for writer in Writer)
        teacher *= TEACHER_WEIGHT
        if teacher != student:
            self._writer = Writer.TEACHER if teacher > student else Writer.STUDENT

    def _hand_over(self) -> None:
        """Lets the chosen side read what its waiting rows hold and gives it the pen."""
        rows = self._waiting[self._writer]
        if not rows:
            return
        self._waiting[self._writer] = []
        rows = self._pass_to_teacher(rows) if self._writer == Writer.TEACHER else self._pass_to_student(rows)
        self._running[self._writer].update((row.slot, row) for row in rows)

    def _pass_to_teacher(self, rows: list[Row]) -> list[Row]:
        """Opens the spans; rows without room in the teacher's context end here. Returns the others."""
        full = [row for row in rows if len(row.teacher_context) >= self._teacher_capacity]
        self._finish([(row, [], RowStatus.LENGTH) for row in full])
        rows = [row for row in rows if row not in full]
        if not rows:
            return rows
        for row in rows:
            row.begin_span(self._teacher_capacity, self.options.max_call_tokens)
        state, slots = self._state, self._tensor([row.slot for row in rows])
        state.span_limit[slots] = self._tensor([row.call.span_limit for row in rows if row.call])
        state.token_limit[slots] = self._tensor([row.token_limit for row in rows])
        self._sides[Writer.TEACHER].catch_up([row.teacher_reading() for row in rows])
        state.status[slots] = int(RowStatus.TEACHER)
        return rows

    def _pass_to_student(self, rows: list[Row]) -> list[Row]:
        state, slots = self._state, self._tensor([row.slot for row in rows])
        max_calls = self.options.max_calls
        self._sides[Writer.STUDENT].catch_up([row.student_reading() for row in rows])
        state.command_state[slots] = 0
        state.command_n[slots] = 0
        has_calls = [max_calls is None or len(row.spans) < max_calls for row in rows]
        can_call = [self.options.policy.allows_commands and has for has in has_calls]
        state.can_call[slots] = torch.tensor(can_call, device=slots.device)
        self._segment_start[slots] = self._tensor([len(row.tokens) for row in rows])
        floor = [row.next_call_floor if has else NEVER for row, has in zip(rows, has_calls, strict=True)]
        self._call_floor[slots] = self._tensor(floor)
        state.status[slots] = int(RowStatus.STUDENT)
        return rows

    def _write(self) -> list[list[int]]:
        """Decode steps of the chosen side; the host does not look in between.

        Returns status, tokens, requested n and cached tokens of every slot, [4, S], for which the host waits.
        """
        start_s = time.perf_counter()
        running, state = self._running[self._writer], self._state
        side, policy = self._sides[self._writer], self.options.policy
        asks = self._writer == Writer.STUDENT and policy.decides_per_token
        if self._graphs is not None:
            slots = self._graphs.place(sorted(running))
        else:
            slots = None if len(running) == state.num_slots else self._tensor(sorted(running))
        for _ in range(self.options.steps_per_look):
            side.write(slots, self._graphs, self._ask_policy if asks else None)
        facts = torch.stack([state.status.long(), state.num_tokens, state.command_n, side.engine.lengths]).tolist()
        side.num_steps += self.options.steps_per_look
        side.step_s += time.perf_counter() - start_s
        return facts

    def _ask_policy(self, logits: Tensor, slots: Tensor | None) -> None:
        """Marks the rows that the policy hands over before their next token. logits: [N, V] of `slots` (None: all)."""
        state = self._state
        slots = torch.arange(state.num_slots, device=logits.device) if slots is None else slots
        num_tokens = state.num_tokens[slots]
        view = PolicyView(
            state.prompt_id[slots],
            state.sample_index[slots],
            num_tokens,
            self._segment_start[slots],
            self.options.seed,
        )
        requested = self.options.policy.decide(logits, view)
        if requested is None:
            return
        status, n = state.status[slots], state.command_n[slots]
        wanted = (requested > 0) & (status == Writer.STUDENT) & (num_tokens >= self._call_floor[slots])
        state.command_n[slots] = torch.where(wanted, requested, n)
        state.status[slots] = status.masked_fill(wanted, int(RowStatus.CALLED))

    def _look(self, facts: list[list[int]]) -> None:
        """Moves the rows that no longer run. facts: what `_write` returned."""
        running = self._running[self._writer]
        status, num_tokens, command_n, num_cached = facts
        free = set(self._free_slots)
        self._sides[self._writer].engine.tighten(max(num for slot, num in enumerate(num_cached) if slot not in free))
        moved = [running.pop(slot) for slot in list(running) if status[slot] != self._writer]
        if not moved:
            return
        written = self._new_tokens(moved, num_tokens)
        finished = []
        for row, tokens in zip(moved, written, strict=True):
            new_tokens, outcome = tokens, RowStatus(status[row.slot])
            row.num_cached[self._writer] = num_cached[row.slot]
            if self._writer == Writer.TEACHER:
                new_tokens, outcome = self._take_span(row, tokens, outcome)
            if outcome in FINISHED:
                finished.append((row, new_tokens, outcome))
            elif outcome == RowStatus.CALLED:
                requested = None if self.options.policy.allows_commands else command_n[row.slot]
                row.open_call(new_tokens, requested, self.protocol, self.bridge)
                self.num_text_handovers += self.bridge is not None
                self._waiting[Writer.TEACHER].append(row)
            else:
                row.close_call(new_tokens, outcome)
                self._waiting[Writer.STUDENT].append(row)
        self._finish(finished)

    def _take_span(self, row: Row, span: list[int], outcome: RowStatus) -> tuple[list[int], RowStatus]:
        """The span as the student reads it, and the row's status with that.

        Over a bridge it may be of another length, so the slot's records are written anew. The budget holds for the
        span as the teacher wrote it and as the student reads it; a finishing end of sequence becomes the student's own.
        """
        row.teacher_context += span
        if self.bridge is None:
            return span, outcome
        self.num_text_handovers += 1
        tokens = self.bridge.to_student(span)
        if outcome == RowStatus.TEACHER_STOP:
            tokens += self._sides[Writer.STUDENT].engine.eos_token_ids[:1]
        start, room = len(row.tokens), row.token_limit - len(row.tokens)
        assert row.call is not None
        row.call.is_cut = len(tokens) > room
        if row.call.is_cut or (len(tokens) == room and outcome != RowStatus.TEACHER_STOP):
            tokens, outcome = tokens[:room], RowStatus.LENGTH
        state, stop = self._state, start + len(tokens)
        state.tokens[row.slot, start:stop] = self._tensor(tokens)
        state.num_tokens[row.slot] = stop
        state.log_probs[row.slot, start:stop] = torch.nan
        state.sampling_log_probs[row.slot, start:stop] = torch.nan
        return tokens, outcome

    def _new_tokens(self, rows: list[Row], num_tokens: list[int]) -> list[list[int]]:
        """Completion tokens of each row that its host record does not hold yet."""
        longest = max(num_tokens[row.slot] for row in rows)
        tokens = self._state.tokens[self._tensor([row.slot for row in rows]), :longest].tolist()
        return [token_ids[len(row.tokens) : num_tokens[row.slot]] for row, token_ids in zip(rows, tokens, strict=True)]

    def _finish(self, finished: list[tuple[Row, list[int], RowStatus]]) -> None:
        """Writes the completions and frees their slots."""
        if not finished:
            return
        state, slots = self._state, self._tensor([row.slot for row, _, _ in finished])
        state.status[slots] = int(RowStatus.EMPTY)
        log_probs, sampling_log_probs = torch.stack([state.log_probs[slots], state.sampling_log_probs[slots]]).tolist()
        for index, (row, new_tokens, status) in enumerate(finished):
            row.finish(new_tokens, status, self.protocol)
            num_tokens = len(row.tokens)
            self._completions[row.order] = row.completion(
                log_probs[index][:num_tokens], sampling_log_probs[index][:num_tokens], self.protocol
            )
            self._free_slots.append(row.slot)
        self.num_finished += len(finished)

    def _admit(self) -> None:
        """Gives free slots to the requests next in line."""
        rows = []
        while self._free_slots and self._queue:
            order, request = self._queue.popleft()
            prompt = request.prompt
            is_all_teacher = self.options.policy.begin(prompt.prompt_id, request.sample_index, self.options.seed)
            teacher_prompt = self._teacher_prompts[order]
            row = Row(
                order=order,
                request=request,
                slot=self._free_slots.pop(),
                token_limit=self._limits[order],
                teacher_context=list(teacher_prompt),
                num_teacher_prompt_tokens=len(teacher_prompt),
                is_all_teacher=is_all_teacher,
            )
            if is_all_teacher:
                row.call = OpenCall(0, 0, row.token_limit, 0)
            rows.append(row)
            self._waiting[Writer.TEACHER if is_all_teacher else Writer.STUDENT].append(row)
        if not rows:
            return
        state, slots = self._state, self._tensor([row.slot for row in rows])
        state.num_tokens[slots] = 0
        state.token_limit[slots] = self._tensor([row.token_limit for row in rows])
        state.prompt_id[slots] = self._tensor([row.request.prompt.prompt_id for row in rows])
        state.sample_index[slots] = self._tensor([row.request.sample_index for row in rows])
        ends = [row.is_all_teacher or self.options.eos_policy == "finish" for row in rows]
        state.ends_on_teacher_eos[slots] = torch.tensor(ends, device=slots.device)
        for side in self._sides.values():
            side.draw_ahead(slots)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._state.tokens.device)
