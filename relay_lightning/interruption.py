"""SIGTERM and Ctrl-C: they stop a command at once, except inside a section that must be finished first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STDERR = 2


class Interrupted(BaseException):
    """A signal asked the command to stop. Not an `Exception`: code that handles failures must let it pass."""

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        super().__init__(f"Stopped by {self.name}.")
        self.sentence = str(self)
        """Printed by the command line; replaced by one that says what was kept."""
        self.exit_code = 128 + number
        """As shells report a process that a signal ended."""


class StopSignals:
    """The stop signals of this process: the first one raises `Interrupted`, a second one ends the process.

    While `is_held`, the first one is only noted in `received`; `release` raises it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.is_held = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handles the signals inside the block, and puts the previous handlers back after it."""
        self.received, self.is_held = None, False
        previous = self.install()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def install(self) -> dict[int, Any]:
        """Installs the handlers and returns the previous ones; only a main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds a signal back until the block is left without an error."""
        was_held, self.is_held = self.is_held, True
        try:
            yield
        finally:
            self.is_held = was_held
        if not was_held:
            self.release()

    def release(self) -> None:
        """Ends the holding back. Raises Interrupted if a signal has arrived."""
        self.is_held = False
        if self.received is not None:
            raise Interrupted(self.received)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        if not self.is_held:
            raise Interrupted(number)
        # print() must not be entered twice, which a signal handler cannot rule out
        text = f"\n{signal.Signals(number).name}: finishing this step; once more stops at once.\n"
        os.write(STDERR, text.encode())


stop_signals = StopSignals()
"""Those of this process. Signals are a matter of the whole process, so there is one."""
