"""Which sequences of a model run, as KV blocks allow (`Scheduler`), and which model runs next (`TurnTaker`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from relay_kernels.relay_step import RowStatus

from relay_lightning.engine.context import Context
from relay_lightning.engine.model_runner import ModelRunner
from relay_lightning.engine.prefiller import Prefiller

TEACHER_WEIGHT = 2
"""128 rows that call once each: 264 student and 26 teacher steps in place of 382 and 25 with a weight of 1; with 8, 178
and 55. Rows that are refilled from a queue and call four times: 312 and 192 in place of 349 and 136."""
MAX_WAIT, BURST = 128, 16


class Scheduler:
    """Admits sequences in the order of their age as long as there are free blocks.

    Where a running sequence needs a block and none is free, the blocks of sequences that are not running are taken
    first, then the youngest running sequence is preempted: it waits, and is read again later. The oldest sequence never
    gives way, so that all are finished in the end.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.waiting: dict[int, Context] = {}
        """Contexts, by row, that have to be read before they run."""
        self.running: dict[int, Context] = {}
        self.idle: dict[int, Context] = {}
        """Contexts that hold blocks while another model writes."""
        self.version = 0
        """Changes with `running`."""
        self.num_evictions = 0
        self.num_preemptions = 0

    @property
    def _prefiller(self) -> Prefiller:
        return self._runner.prefiller

    @property
    def num_active(self) -> int:
        """Sequences that run or wait to run."""
        return len(self.waiting) + len(self.running)

    def wait(self, context: Context) -> None:
        """Queues a context that is to run."""
        self.idle.pop(context.row, None)
        self.waiting[context.row] = context

    def pause(self, context: Context) -> None:
        """Stops a running context, which keeps its blocks as long as nobody else needs them."""
        del self.running[context.row]
        self.idle[context.row] = context
        self.version += 1

    def remove(self, context: Context) -> None:
        """Forgets a context and frees its blocks."""
        for group in (self.waiting, self.running, self.idle):
            group.pop(context.row, None)
        self._prefiller.evict(context)
        self.version += 1

    def admit(self, num_steps: int, start: Callable[[list[Context]], None]) -> None:
        """Has waiting contexts read, oldest first, as far as there are blocks for them, and makes them run.

        start: writes the rows of contexts that have been read. Where either fails, they wait again.
        """
        admitted = self._reserve(num_steps)
        if not admitted:
            return
        try:
            self._runner.prefill()
            start(admitted)
        except BaseException:
            self._runner.write_rows(admitted, status=RowStatus.EMPTY)
            for context in admitted:
                self.waiting[context.row] = self.running.pop(context.row)
                self._prefiller.evict(context)
            self.version += 1
            raise

    def _reserve(self, num_steps: int) -> list[Context]:
        """Reserves blocks for waiting contexts, oldest first; returns those that got them."""
        admitted: list[Context] = []
        for context in sorted(self.waiting.values(), key=_age):
            # A new sequence leaves room for those that run to grow; it would be the first to be preempted.
            is_new = context.num_written == 0 and bool(self.running)
            spare = len(self.running) // 2 if is_new else 0
            parked = [] if is_new else self._parked_for(context)
            younger = [o for o in self.running.values() if o.age > context.age and o not in admitted]
            if not self._take_blocks(partial(self._prefiller.reserve, context, num_steps, spare), parked, younger):
                break
            del self.waiting[context.row]
            self.running[context.row] = context
            self.version += 1
            admitted.append(context)
        return admitted

    def grow(self, num_steps: int) -> None:
        """Gives every running context blocks for so many decode steps, at the cost of others."""
        size = self._runner.block_size
        short = (c for c in self.running.values() if c.num_tokens + num_steps > len(c.blocks) * size)
        for context in sorted(short, key=_age):
            if context.row not in self.running or self._prefiller.extend(context, num_steps):
                continue
            parked = self._parked_for(context)
            younger = [other for other in self.running.values() if other.age > context.age]
            if not self._take_blocks(partial(self._prefiller.extend, context, num_steps), parked, younger):
                self._stop(context)

    def evict_all(self) -> None:
        """Takes the blocks of all contexts; those that ran wait."""
        for context in list(self.running.values()):
            self._stop(context)
        for context in (*self.idle.values(), *self.waiting.values()):
            self._prefiller.evict(context)

    def _parked_for(self, context: Context) -> list[Context]:
        """Returns the contexts whose blocks `context` may have: idle ones, and younger ones that wait."""
        waiting = (other for other in self.waiting.values() if other.age > context.age)
        return [other for other in (*self.idle.values(), *waiting) if other.blocks]

    def _take_blocks(self, take: Callable[[], bool], parked: list[Context], running: list[Context]) -> bool:
        """Calls `take` until it succeeds, or until the contexts have no more blocks to give, youngest first."""
        parked.sort(key=_age)
        running.sort(key=_age)
        while not take():
            if parked:
                self._prefiller.evict(parked.pop())
                self.num_evictions += 1
            elif running:
                self._stop(running.pop())
            else:
                return False
        return True

    def _stop(self, context: Context) -> None:
        """Preempts a running context."""
        self._runner.stop(context)
        del self.running[context.row]
        self.version += 1
        self.waiting[context.row] = context
        self._prefiller.evict(context)
        self.num_preemptions += 1


def _age(context: Context) -> int:
    return context.age


class TurnTaker:
    """Chooses which of two models on one device decodes next.

    The model with more sequences that could run goes next, each call counting `TEACHER_WEIGHT` times. So sequences
    gather before the turn changes, because a step costs few rows nearly what it costs many. A model that has waited for
    `MAX_WAIT` turns gets the next `BURST`, so that no sequence waits without bound.
    """

    def __init__(self) -> None:
        self._is_teachers = False
        self._num_waited = 0
        """Turns in a row that one model has taken while the other had work."""
        self._num_reserved = 0
        """Turns that the present model keeps, whatever the numbers."""

    def is_teachers(self, num_students: int, num_calls: int) -> bool:
        """Returns True if the teacher goes next. num_students, num_calls: sequences that either model could run."""
        if num_students == 0 or num_calls == 0:
            self._is_teachers, self._num_waited, self._num_reserved = num_calls > 0, 0, 0
            return self._is_teachers
        self._num_waited += 1
        if self._num_reserved:
            self._num_reserved -= 1
        elif self._num_waited > MAX_WAIT:
            self._switch()
            self._num_reserved = BURST - 1
        elif self._is_teachers:
            if TEACHER_WEIGHT * num_calls < num_students:
                self._switch()
        elif TEACHER_WEIGHT * num_calls > num_students:
            self._switch()
        return self._is_teachers

    def _switch(self) -> None:
        self._is_teachers = not self._is_teachers
        self._num_waited = 1
