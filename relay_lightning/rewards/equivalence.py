"""Mathematical equality of two answers, decided by math-verify in processes of its own.

A student can write an answer that keeps a computer algebra system busy for ever (a tower of powers, the factorial of a
billion), and math-verify's own timeouts work only in a main thread and not inside arithmetic of large integers. So
worker processes compare, one for each thread that asks, and the operating system ends one whose comparison has used up
its processor time.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import queue
import subprocess
import sys
import threading
from enum import StrEnum
from pathlib import Path

WORKER_SCRIPT = Path(__file__).with_name("equivalence_worker.py")

MAX_PROCESSOR_S = 3.0
"""Processor time of one comparison; usual ones take a millisecond."""

NUM_WORKERS = min(4, os.cpu_count() or 1)
"""Comparisons at the same time, at most."""

MAX_ANSWER_CHARACTERS = 1000
"""Longer answers are no answers: what reads them takes more time than their length."""


class Equivalence(StrEnum):
    """What came of a comparison. The values are the words of the worker."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNDECIDED = "undecided"
    """One side is no mathematics, or the comparison failed or took too long."""


@functools.lru_cache(maxsize=4096)
def check_equivalence(reference: str, given: str) -> Equivalence:
    """Compares two answers in LaTeX or plain notation, `reference` first because math-verify is not symmetric.

    Raises RuntimeError when math-verify cannot be started.
    """
    return _workers.compare(reference, given)


class _Worker:
    """The process, started when it is first needed and again after it was ended. Safe to call from any thread."""

    def __init__(self, script: Path = WORKER_SCRIPT, max_processor_s: float = MAX_PROCESSOR_S) -> None:
        self._command = [sys.executable, "-P", str(script), str(max_processor_s)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def compare(self, reference: str, given: str) -> Equivalence:
        with self._lock:
            process = self._running()
            try:
                word = _ask(process, json.dumps([reference, given]))
            except BaseException:  # an interrupt: the answer still to come must not answer the next question
                self._stop()
                raise
            if word:
                return Equivalence(word)
            self._stop()  # the system ended it
            return Equivalence.UNDECIDED

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[str]:
        """The process; a fork of this one must not share its pipes, so the owner is remembered."""
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8")
            self._owner = os.getpid()
            assert self._process.stdout is not None
            if self._process.stdout.readline().strip() != "ready":
                self._stop()
                raise RuntimeError("math-verify could not be started: see the worker's error above; is it installed?")
        return self._process

    def _stop(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None


def _ask(process: subprocess.Popen[str], line: str) -> str:
    """The line that answers `line`, or "" from a process that has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


class _Workers:
    """Several of them; threads that find all busy wait for one. The last one used is the first to be used again."""

    def __init__(self, num_workers: int = NUM_WORKERS) -> None:
        self._all = [_Worker() for _ in range(num_workers)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)

    def compare(self, reference: str, given: str) -> Equivalence:
        worker = self._idle.get()
        try:
            return worker.compare(reference, given)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        for worker in self._all:
            worker.close()


_workers = _Workers()
atexit.register(_workers.close)
