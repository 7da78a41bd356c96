"""Runs a function of untrusted input in a child process with limits on time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

MAX_PROCESSOR_S = 3.0
"""Processor time of the child; rendering an ordinary chat template takes ten milliseconds."""
MAX_WALL_S = 60.0
"""Limit for a child that makes no progress; wide, because a busy machine is no fault of the input."""
MAX_EXTRA_BYTES = 2**30
"""Address space that the child may take beyond what this process has."""
MAX_ANSWER_BYTES = 2**24


def run_in_child(function: Callable[[], Any]) -> Any:
    """Returns what `function` returns, plain JSON types, computed in a forked child process.

    The operating system ends a child that uses too much time or memory, also inside a C function, where no exception
    could. Raises RuntimeError in that case, and ValueError with the reason for an exception of `function`. Where there
    is no fork (Windows), the function runs in this process.
    """
    if not hasattr(os, "fork"):
        return function()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(function, writer)
    os.close(writer)
    try:
        answer = _read(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not answer.endswith(b"\n"):
        raise RuntimeError(f"it takes more than {MAX_PROCESSOR_S:g} s or too much memory")
    outcome = json.loads(answer)
    if "error" in outcome:
        raise ValueError(outcome["error"])
    return outcome["value"]


def _answer(function: Callable[[], Any], writer: int) -> NoReturn:
    """The child: writes one JSON line and ends, without any of the parent's clean-up."""
    try:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, MAX_PROCESSOR_S)
        _limit_memory()
        try:
            outcome = {"value": function()}
        except Exception as error:
            outcome = {"error": " ".join(str(error).split())[:500] or type(error).__name__}
        with os.fdopen(writer, "wb") as file:
            file.write(json.dumps(outcome).encode() + b"\n")
    finally:
        os._exit(0)


def _limit_memory() -> None:
    """Lets the address space grow by `MAX_EXTRA_BYTES`, where the system says how large it is (Linux)."""
    import resource  # only where there is a fork

    with contextlib.suppress(OSError, ValueError):
        num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = num_pages * resource.getpagesize() + MAX_EXTRA_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _read(reader: int) -> bytes:
    """All that the child writes, until it ends or a limit is reached."""
    deadline = time.monotonic() + MAX_WALL_S
    answer = b""
    while len(answer) < MAX_ANSWER_BYTES:
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        piece = os.read(reader, 2**16)
        if not piece:
            break
        answer += piece
    return answer
