"""LocalTeacher: a teacher that decodes in this process."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from relay_kernels.relay_step import RowStatus, TokenSource

from relay_lightning.engine.base import TokenModel
from relay_lightning.engine.context import Context
from relay_lightning.engine.cuda_graphs import Capture
from relay_lightning.engine.model_runner import ModelRunner
from relay_lightning.engine.runner_stats import RunnerStats
from relay_lightning.engine.sampling import sampling_rows
from relay_lightning.relay.scheduler import Scheduler
from relay_lightning.relay.teacher import TeacherCall, TeacherSpan
from relay_lightning.types import FinishReason

_FINISH = {
    RowStatus.DELIVERED: FinishReason.DELIVERED,
    RowStatus.TEACHER_ENDED: FinishReason.TEACHER_STOP,
    RowStatus.TEACHER_STOP: FinishReason.TEACHER_STOP,
}


@dataclass(slots=True, eq=False)
class _Reader:
    """One sequence as the teacher holds it."""

    context: Context
    call: TeacherCall | None = None


class LocalTeacher:
    """`Teacher` over a model of this process, batched over all open calls."""

    is_local = True

    def __init__(self, model: TokenModel) -> None:
        self.model = model
        self.runner: ModelRunner
        self.scheduler: Scheduler
        self._steps_per_sync = 1
        self._readers: dict[int, _Reader] = {}
        """By sequence id."""
        self._by_row: dict[int, int] = {}
        """Sequence id of each row in use."""
        self._free_rows: list[int] = []

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def max_context(self) -> int:
        return self.model.max_context

    @property
    def stats(self) -> RunnerStats:
        return self.runner.stats

    @property
    def num_calls(self) -> int:
        return self.scheduler.num_active

    def configure(
        self,
        max_num_seqs: int,
        block_size: int,
        num_token_ids: int,
        steps_per_sync: int,
        capture: Capture | None,
    ) -> None:
        self.runner = ModelRunner(
            self.model, TokenSource.TEACHER, max_num_seqs, block_size, num_token_ids, capture=capture
        )
        self.scheduler = Scheduler(self.runner)
        self._steps_per_sync = steps_per_sync
        self._readers, self._by_row, self._free_rows = {}, {}, list(reversed(range(max_num_seqs)))

    def open(self) -> None:
        self.runner.open()

    def close(self) -> None:
        self.runner.close()

    def kv_bytes_per_token(self) -> int:
        return self.model.kv_bytes_per_token()

    def allocate(self, num_blocks: int) -> None:
        self.scheduler.evict_all()
        self.runner.allocate(num_blocks)

    def submit(self, call: TeacherCall) -> None:
        reader = self._readers.get(call.sequence_id)
        if reader is None:
            row = self._free_rows.pop()
            self._by_row[row] = call.sequence_id
            context = Context(call.sequence_id, row, [], len(call.new_token_ids), call.max_context)
            reader = self._readers[call.sequence_id] = _Reader(context)
        reader.call = call
        context = reader.context
        context.token_ids += call.new_token_ids
        context.position = context.num_written = call.start
        self.runner.fit_completions(call.start + call.num_tokens)
        self.scheduler.wait(context)

    def poll(self) -> list[TeacherSpan]:
        scheduler, runner = self.scheduler, self.runner
        scheduler.grow(self._steps_per_sync)
        scheduler.admit(self._steps_per_sync, self._start)
        if not scheduler.running:
            return []
        contexts = sorted(scheduler.running.values(), key=lambda context: context.row)
        truncates = any(self._call_of(context).sampling.truncates for context in contexts)
        facts = runner.decode(contexts, self._steps_per_sync, truncates=truncates)
        return self._collect(contexts, facts.status)

    def release(self, sequence_id: int) -> None:
        reader = self._readers.pop(sequence_id, None)
        if reader is not None:
            row = reader.context.row
            self.runner.write_rows([reader.context], status=RowStatus.EMPTY)
            self.scheduler.remove(reader.context)
            del self._by_row[row]
            self._free_rows.append(row)

    def recover(self) -> list[TeacherSpan]:
        """Returns the spans that were finished when a turn failed; the other calls wait, without blocks."""
        contexts = list(self.scheduler.running.values())
        spans = self._collect(contexts, self.runner.refresh(contexts).status) if contexts else []
        self.scheduler.evict_all()
        return spans

    def _start(self, contexts: list[Context]) -> None:
        """Writes the rows of contexts that have just been read."""
        calls = [self._call_of(context) for context in contexts]
        self.runner.write_rows(
            contexts,
            status=RowStatus.TEACHER,
            num_tokens=[context.position for context in contexts],
            token_limit=[torch.iinfo(torch.int64).max] * len(contexts),
            span_limit=[call.start + call.num_tokens for call in calls],
            ends_on_teacher_eos=[call.keeps_eos for call in calls],
            prompt_id=[call.prompt_id for call in calls],
            sample_index=[call.sample_index for call in calls],
            **sampling_rows([call.sampling for call in calls], [call.seed for call in calls]),
        )

    def _collect(self, contexts: list[Context], status: list[int]) -> list[TeacherSpan]:
        """Returns the spans of the rows that have stopped."""
        stopped = [
            (context, RowStatus(now)) for context, now in zip(contexts, status, strict=True) if now != RowStatus.TEACHER
        ]
        if stopped:
            self.runner.sync([context for context, _ in stopped])
        spans = []
        for context, now in stopped:
            reader = self._readers[self._by_row[context.row]]
            assert reader.call is not None
            count = len(context.log_probs)
            tokens = context.token_ids[len(context.token_ids) - count :]
            spans.append(
                TeacherSpan(
                    reader.call.sequence_id, tokens, context.log_probs, context.sampling_log_probs, _FINISH[now]
                )
            )
            context.log_probs, context.sampling_log_probs, reader.call = [], [], None
            self.scheduler.pause(context)
        return spans

    def _call_of(self, context: Context) -> TeacherCall:
        call = self._readers[self._by_row[context.row]].call
        assert call is not None
        return call
