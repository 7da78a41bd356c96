"""Mathematical equality of two formulas, decided in worker processes under limits.

A student can write an answer that keeps a computer algebra system busy for ever (a tower of powers, the factorial of a
billion) or fills the memory, and math-verify's own timeouts work only in a main thread and not inside arithmetic of
large integers. So worker processes compare, one for each thread that asks. Each has a limit of processor time and of
memory, which the operating system keeps, and a limit of wall time, which the asking thread keeps.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from relay_lightning.rewards.comparison import Equivalence

WORKER_SCRIPT = Path(__file__).with_name("equivalence_worker.py")

NUM_WORKERS = min(4, os.cpu_count() or 1)
"""Comparisons at the same time, at most."""

MAX_ANSWER_CHARACTERS = 1000
"""Longer answers are no answers: what reads them takes more time than their length."""

CACHE_SIZE = 4096
OUT_OF_MEMORY = 3
"""Exit status of a worker that reached its memory limit; the worker script has the same number."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one comparison may use; usual ones take a millisecond and no memory to speak of."""

    processor_s: float = 3.0
    wall_s: float = 30.0
    """For a worker that is stopped or starved; one at its processor limit ends long before."""
    memory_bytes: int = 1 << 30
    """Address space. math-verify itself takes 70 MB."""
    start_s: float = 120.0
    """Wall time to import math-verify."""


class ComparisonBudget:
    """Processor time that the slow comparisons of a batch may take together.

    A comparison counts with what it takes beyond `USUAL_S`, so that a batch of any number of usual answers passes. One
    that ends at the wall limit counts with that.
    """

    USUAL_S = 0.25

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds
        self._lock = threading.Lock()
        self.num_refused = 0
        """Comparisons not made because nothing was left."""

    def admits(self) -> bool:
        """False, and counted, when the budget is used up."""
        with self._lock:
            self.num_refused += self._left_s <= 0
            return self._left_s > 0

    def spend(self, seconds: float) -> None:
        with self._lock:
            self._left_s -= max(0.0, seconds - self.USUAL_S)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of one comparison in a worker."""

    verdict: Equivalence
    used_s: float
    """Processor time, or the limit that was reached."""
    is_lasting: bool
    """True when it would come out the same another time."""


class Worker:
    """One process, started when it is first needed and again after it ended. Safe to call from any thread."""

    def __init__(self, script: Path = WORKER_SCRIPT, limits: WorkerLimits | None = None) -> None:
        self._limits = limits or WorkerLimits()
        arguments = [str(self._limits.processor_s), str(self._limits.memory_bytes)]
        self._command = [sys.executable, "-P", str(script), *arguments]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    @property
    def process_id(self) -> int | None:
        """The process, or None while there is none."""
        return None if self._process is None else self._process.pid

    def compare(self, reference: str, given: str, tolerance: Fraction = Fraction(0)) -> Outcome:
        """Compares two formulas up to an absolute tolerance.

        A worker that something else ended is started again and asked once more. Raises RuntimeError when the worker
        reports that it cannot start.
        """
        line = json.dumps([reference, given, str(tolerance)]).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                try:
                    if not self._start():
                        continue
                    answer = self._ask(line, self._limits.wall_s)
                    if answer:
                        word, used_s = answer.split()
                        return Outcome(Equivalence(word), float(used_s), is_lasting=True)
                    outcome = self._end()
                except BaseException:  # an interrupt: the answer still to come must not answer the next question
                    self._stop()
                    raise
                if outcome is not None:
                    return outcome
            return Outcome(Equivalence.UNDECIDED, 0.0, is_lasting=False)

    def prepare(self) -> None:
        """Starts the process unless it runs."""
        with self._lock:
            self._start()

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _start(self) -> bool:
        """Starts the process unless it runs; False when something ended it before it was ready."""
        if self._process is not None and (self._owner != os.getpid() or self._process.poll() is not None):
            self._stop()  # a fork of this process must not share its pipes
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe)
            self._owner = os.getpid()
            if self._ask(b"", self._limits.start_s) != "ready":
                status = self._status()
                self._stop()
                if status is not None and status > 0:
                    raise RuntimeError(
                        "math-verify could not be started: see the worker's error above; is it installed?"
                    )
                return False
        return True

    def _ask(self, line: bytes, wall_s: float) -> str:
        """The line that answers `line`, or "" from a process that has ended or not answered in time."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if line:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line)
                self._process.stdin.flush()
        answer, deadline = b"", time.monotonic() + wall_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not answer.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return ""
                read = os.read(self._process.stdout.fileno(), 4096)
                if not read:
                    return ""
                answer += read
        return answer.decode().strip()

    def _status(self) -> int | None:
        """The exit status of a process whose output has ended; None of one that still runs."""
        assert self._process is not None
        try:
            return self._process.wait(timeout=1.0 if self._process.poll() is None else None)
        except subprocess.TimeoutExpired:
            return None

    def _end(self) -> Outcome | None:
        """Ends a process that did not answer. The outcome if it was at a limit, None if something else ended it."""
        status = self._status()
        self._stop()
        if status in (-signal.SIGPROF, OUT_OF_MEMORY):
            return Outcome(Equivalence.UNDECIDED, self._limits.processor_s, is_lasting=True)
        return Outcome(Equivalence.UNDECIDED, self._limits.wall_s, is_lasting=False) if status is None else None

    def _stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self._process = None


class WorkerPool:
    """Several workers with a cache; threads that find all busy wait for one, the last one used is the first again."""

    def __init__(self, num_workers: int = NUM_WORKERS, limits: WorkerLimits | None = None) -> None:
        self._workers = [Worker(limits=limits) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._cache: OrderedDict[tuple[str, str, Fraction], Equivalence] = OrderedDict()
        self._lock = threading.Lock()

    def compare(
        self, reference: str, given: str, tolerance: Fraction = Fraction(0), budget: ComparisonBudget | None = None
    ) -> Equivalence:
        """Compares two formulas in plain notation, up to an absolute tolerance.

        UNDECIDED, and not kept in the cache, when the budget is used up or something else ended the worker. Raises
        RuntimeError when math-verify cannot be started.
        """
        key = (reference, given, tolerance)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        worker = self._idle.get()
        try:
            if budget is not None and not budget.admits():
                return Equivalence.UNDECIDED
            outcome = worker.compare(reference, given, tolerance)
            if budget is not None:
                budget.spend(outcome.used_s)
        finally:
            self._idle.put(worker)
        if outcome.is_lasting:
            with self._lock:
                self._cache[key] = outcome.verdict
                if len(self._cache) > CACHE_SIZE:
                    self._cache.popitem(last=False)
        return outcome.verdict

    def close(self) -> None:
        """Ends the processes; they start again when they are needed."""
        for worker in self._workers:
            worker.close()


workers = WorkerPool()
"""The pool that judges answers."""
atexit.register(workers.close)
