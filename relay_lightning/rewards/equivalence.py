"""Mathematical equality of two answers, decided by math-verify in a process of its own.

A student can write an answer that keeps a computer algebra system busy for ever (a tower of powers, the factorial of a
billion), and math-verify's own timeouts work only in a main thread and not inside arithmetic of large integers. So a
worker process compares, and the operating system ends it when one comparison has used up its processor time.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import threading
from enum import StrEnum
from pathlib import Path

WORKER_SCRIPT = Path(__file__).with_name("equivalence_worker.py")

MAX_PROCESSOR_S = 3.0
"""Processor time of one comparison; usual ones take a millisecond."""

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
    return _worker.compare(reference, given)


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


_worker = _Worker()
atexit.register(_worker.close)
