"""RelayLoop: moves sequences between student and teacher until they are finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from relay_kernels.relay_step import RowStatus

from relay_lightning.engine.context import Context
from relay_lightning.engine.model_runner import Facts, ModelRunner
from relay_lightning.engine.sampling import sampling_rows
from relay_lightning.relay.accounting import DecodeStats
from relay_lightning.relay.batch import Batch
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.policy_rows import NEVER, PolicyRows
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.requests import RequestOutput
from relay_lightning.relay.scheduler import Scheduler, TurnTaker
from relay_lightning.relay.sequence import COMPLETION_FINISH, OpenCall, Sequence, SequenceStatus
from relay_lightning.relay.teacher import Teacher, TeacherCall, TeacherSpan
from relay_lightning.types import Completion, FinishReason


class RelayLoop:
    """Sequences wait in a queue for a free row, then take turns between the student, which runs here, and the teacher,
    which is asked for spans."""

    def __init__(
        self,
        runner: ModelRunner,
        teacher: Teacher | None,
        protocol: CompiledProtocol,
        bridge: TextBridge | None,
        steps_per_sync: int,
    ) -> None:
        """runner: the student's."""
        self.runner = runner
        self.scheduler = Scheduler(runner)
        self.stats = DecodeStats()
        """Counts of what has become of sequences."""
        self.sequences: dict[int, Sequence] = {}
        """Sequences in flight, by request id."""
        self.finished: dict[int, tuple[Sequence, Completion]] = {}
        """Sequences that have ended, by request id, until their completions are taken."""
        self.by_row: dict[int, Sequence] = {}
        """Those that have a row."""
        self._teacher = teacher
        self._protocol = protocol
        self._bridge = bridge
        self._steps_per_sync = steps_per_sync
        self._policies = PolicyRows(runner)
        self._turns = TurnTaker()
        self._batch = Batch()
        self._queue: deque[Sequence] = deque()
        self._free_rows = list(reversed(range(runner.num_rows)))

    def add(self, sequence: Sequence) -> None:
        """Queues a new sequence."""
        self.sequences[sequence.request_id] = sequence
        self._queue.append(sequence)

    def advance(self) -> None:
        """Runs one turn: new sequences get rows, then a model reads what its sequences lack and decodes."""
        self._fill_rows()
        teacher, num_active = self._teacher, self.scheduler.num_active
        if teacher is not None and (not teacher.is_local or self._turns.is_teachers(num_active, teacher.num_calls)):
            self._take_spans(teacher.poll())
            if not teacher.is_local and self.scheduler.num_active:
                self._write()
        elif num_active:
            self._write()

    def recover(self) -> None:
        """Takes in what was written when a turn failed; all sequences that are not finished wait, without blocks."""
        contexts = list(self.scheduler.running.values())
        if contexts:
            self._sort_out([self.by_row[context.row] for context in contexts], self.runner.refresh(contexts))
        self.scheduler.evict_all()
        if self._teacher is not None:
            self._take_spans(self._teacher.recover())

    def _fill_rows(self) -> None:
        """Gives free rows to the requests next in line."""
        while self._free_rows and self._queue:
            sequence = self._queue.popleft()
            sequence.context.row = self._free_rows.pop()
            self.by_row[sequence.context.row] = sequence
            if sequence.is_all_teacher:
                sequence.call = OpenCall(0, 0, sequence.token_limit)
                self._submit(sequence)
            else:
                self._to_student(sequence)

    def _to_student(self, sequence: Sequence) -> None:
        sequence.status = SequenceStatus.STUDENT
        self.runner.fit_completions(sequence.token_limit)
        self.scheduler.wait(sequence.context)

    def _submit(self, sequence: Sequence) -> None:
        """Hands a sequence with an open call to the teacher; without room in its context the completion ends here."""
        num_tokens = sequence.span_budget()
        if num_tokens <= 0:
            self._finish(sequence, FinishReason.LENGTH)
            return
        assert self._teacher is not None
        assert sequence.call is not None
        request = sequence.request
        call = TeacherCall(
            sequence_id=sequence.request_id,
            new_token_ids=sequence.unread,
            num_tokens=num_tokens,
            max_context=sequence.teacher_context,
            start=sequence.call.start,
            sampling=request.teacher_sampling or request.sampling,
            seed=request.seed,
            prompt_id=request.prompt.prompt_id,
            sample_index=request.sample_index,
            keeps_eos=sequence.ends_with_teacher,
        )
        sequence.num_teacher_context += len(sequence.unread)
        sequence.unread = []
        sequence.status = SequenceStatus.TEACHER
        self._teacher.submit(call)

    def _write(self) -> None:
        """Runs decode steps of the student."""
        scheduler, runner, num_steps = self.scheduler, self.runner, self._steps_per_sync
        scheduler.grow(num_steps)
        scheduler.admit(num_steps, self._start)
        if not scheduler.running:
            return
        if self._batch.version != scheduler.version:
            self._batch = Batch.of(scheduler, self.by_row, self._policies)
        batch = self._batch
        facts = runner.decode(
            batch.contexts, num_steps, batch.before_sampling, truncates=batch.truncates, key=batch.policies
        )
        if batch.has_stop or facts.status.count(RowStatus.STUDENT) < len(batch.contexts):
            self._sort_out(batch.sequences, facts)

    def _start(self, contexts: list[Context]) -> None:
        """Writes the rows of sequences that the student has just read."""
        self.runner.write_rows(contexts, status=RowStatus.STUDENT)
        sequences = [self.by_row[context.row] for context in contexts]
        sequences = [sequence for sequence in sequences if sequence.is_new_segment]
        if not sequences:
            return
        requests = [sequence.request for sequence in sequences]
        self.runner.write_rows(
            [sequence.context for sequence in sequences],
            num_tokens=[sequence.num_tokens for sequence in sequences],
            token_limit=[sequence.token_limit for sequence in sequences],
            command_state=0,
            command_n=0,
            command_rule=[sequence.command_rule for sequence in sequences],
            prompt_id=[request.prompt.prompt_id for request in requests],
            sample_index=[request.sample_index for request in requests],
            **sampling_rows([request.sampling for request in requests], [request.seed for request in requests]),
        )
        self._policies.write(
            [sequence.context.row for sequence in sequences],
            [sequence.policy for sequence in sequences],
            [sequence.num_tokens for sequence in sequences],
            [sequence.next_call_floor if sequence.has_calls_left else NEVER for sequence in sequences],
        )
        for sequence in sequences:
            sequence.is_new_segment = False

    def _sort_out(self, sequences: list[Sequence], facts: Facts) -> None:
        """Moves the sequences that no longer run. facts: what became of them in the student's decode steps."""
        moved = [
            (sequence, RowStatus(status), command_n)
            for sequence, status, command_n in zip(sequences, facts.status, facts.command_n, strict=True)
            if status != RowStatus.STUDENT or sequence.stop is not None
        ]
        if moved:
            self.runner.sync([sequence.context for sequence, _, _ in moved])
        for sequence, status, command_n in moved:
            if sequence.find_stop(self._protocol):
                self._finish(sequence, FinishReason.STOP)
            elif status in COMPLETION_FINISH:
                self._finish(sequence, COMPLETION_FINISH[status])
            elif status == RowStatus.CALLED:
                self.scheduler.pause(sequence.context)
                has_command = sequence.policy.allows_commands
                # A policy that hands over has seen the logits behind the last token, which is thus in the cache.
                sequence.context.num_cached += not has_command
                sequence.open_call(None if has_command else command_n, self._protocol, self._bridge)
                self.stats.num_text_handovers += self._bridge is not None
                self._submit(sequence)

    def _take_spans(self, spans: list[TeacherSpan]) -> None:
        """Appends finished spans; their sequences go back to the student, or end."""
        for span in spans:
            sequence = self.sequences[span.sequence_id]
            self.stats.num_text_handovers += self._bridge is not None
            reason = sequence.take_span(span, self._bridge, list(self.runner.model.eos_token_ids))
            if sequence.find_stop(self._protocol):
                reason = FinishReason.STOP
            if reason is None:
                self._to_student(sequence)
            else:
                self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Ends a sequence and frees its row."""
        completion = sequence.complete(reason, self._protocol)
        self.stats.count(completion)
        self._remove(sequence)
        self.finished[sequence.request_id] = sequence, completion

    def take_finished(self, request_ids: Collection[int]) -> dict[int, Completion]:
        """Returns the completions of those of the requests that have ended."""
        taken = [request_id for request_id in self.finished if request_id in request_ids]
        return {request_id: self.finished.pop(request_id)[1] for request_id in taken}

    def report(self) -> list[RequestOutput]:
        """Returns the tokens that no output has told of yet, and takes all completions."""
        if self.scheduler.running:
            self.runner.sync(list(self.scheduler.running.values()))
        outputs = [sequence.report(completion) for sequence, completion in self.finished.values()]
        self.finished = {}
        new = (sequence for sequence in self.by_row.values() if sequence.num_tokens > sequence.num_reported)
        return outputs + [sequence.report(None) for sequence in new]

    def abort(self, request_id: int) -> None:
        """Drops a sequence that is in flight, with its completion if it has ended."""
        self.finished.pop(request_id, None)
        if request_id in self.sequences:
            self._remove(self.sequences[request_id])

    def _remove(self, sequence: Sequence) -> None:
        """Forgets a sequence and gives its row and blocks back."""
        del self.sequences[sequence.request_id]
        if sequence.status == SequenceStatus.QUEUED:
            self._queue.remove(sequence)
            return
        row = sequence.context.row
        self.runner.write_rows([sequence.context], status=RowStatus.EMPTY)
        self.scheduler.remove(sequence.context)
        if self._teacher is not None:
            self._teacher.release(sequence.request_id)
        del self.by_row[row]
        self._free_rows.append(row)
