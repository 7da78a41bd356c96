"""Progress of long work on stderr: a live display on a terminal, a plain line now and then in a file or a pipe."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_INTERVAL_S = 30.0
"""Between two lines when stderr is no terminal."""
BAR_WIDTH = 24
"""Leaves room for name, numbers and time in 80 columns."""
REFRESHES_PER_S = 4

console = Console(stderr=True, highlight=False)
"""Console of the progress display; text printed through it appears above the display."""


class Work:
    """A piece of work that is under way: `update` it as it goes on, `close` it at its end."""

    def __init__(
        self, display: Display | None, name: str, total: int | None, unit: str, done: int = 0, is_kept: bool = False
    ) -> None:
        self.name, self.total, self.unit, self.done, self.is_kept = name, total, unit, done, is_kept
        self.figures: Mapping[str, str] = {}
        self._display = display
        if display is not None:
            display.add(self)

    def update(self, done: int, figures: Mapping[str, str] | None = None) -> None:
        """`done` counts from the beginning. `figures` (name -> value) stand in a line of their own."""
        self.done = done
        if figures is not None:
            self.figures = figures
        if self._display is not None:
            self._display.refresh(self)

    def close(self) -> None:
        """Takes the work off the display; once is enough."""
        if self._display is not None:
            self._display.remove(self)
            self._display = None

    def __str__(self) -> str:
        of = "" if self.total is None else f"/{self.total}"
        return f"{self.name} {self.done}{of} {self.unit}"


class Display:
    """The works that are under way, the outermost first. Shows nothing by itself."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    def add(self, work: Work) -> None:
        self.works.append(work)

    def refresh(self, work: Work) -> None:
        """Shows what `work` says of itself by now."""

    def remove(self, work: Work) -> None:
        self.works.remove(work)

    def stop(self) -> None:
        """Takes everything off, whatever was not closed."""
        for work in reversed(list(self.works)):
            work.close()


class LineDisplay(Display):
    """Prints all works in one line, at most every `LINE_INTERVAL_S`, and each piece of work when it is over."""

    def __init__(self) -> None:
        super().__init__()
        self._printed_s = time.monotonic()

    def refresh(self, work: Work) -> None:  # noqa: ARG002 - one line shows all
        if time.monotonic() - self._printed_s >= LINE_INTERVAL_S:
            self._print(self.works)

    def remove(self, work: Work) -> None:
        if work is self.works[0]:
            self._print([work])
        super().remove(work)

    def _print(self, works: Iterable[Work]) -> None:
        self._printed_s = time.monotonic()
        figures = [f"{name} {value}" for work in works for name, value in work.figures.items()]
        print(", ".join([*map(str, works), *figures]), file=sys.stderr, flush=True)


class TerminalDisplay(Display):
    """Bars that are drawn again in place, gone when the work is over unless it is to be kept."""

    def __init__(self) -> None:
        super().__init__()
        self._bars: _Bars | None = None
        self._ids: dict[int, TaskID] = {}

    def add(self, work: Work) -> None:
        super().add(work)
        if self._bars is None:
            self._bars = _Bars()
            self._bars.start()
            _send_logs_to(sys.stderr)
        self._ids[id(work)] = self._bars.add_task(work.name, total=work.total, completed=work.done, unit=work.unit)

    def refresh(self, work: Work) -> None:
        assert self._bars is not None
        self._bars.figures = self.works[0].figures
        self._bars.update(self._ids[id(work)], completed=work.done)

    def remove(self, work: Work) -> None:
        assert self._bars is not None
        super().remove(work)
        task = self._ids.pop(id(work))
        if self.works:
            self._bars.remove_task(task)
            return
        self._bars.live.transient = not work.is_kept
        self._bars.stop()
        self._bars = None
        _send_logs_to(sys.stderr)


class _Bars(Progress):
    """Rich's bars, narrow enough for 80 columns, and a line of figures below them."""

    def __init__(self) -> None:
        self.figures: Mapping[str, str] = {}
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            redirect_stdout=sys.stdout.isatty(),
            refresh_per_second=REFRESHES_PER_S,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(" · ".join(f"{name} {value}" for name, value in self.figures.items()), style="dim")


_display: Display | None = None


@contextmanager
def display(is_shown: bool = True) -> Iterator[None]:
    """Shows the work within, unless not `is_shown`; a display within another one is part of it."""
    start(is_shown)
    try:
        yield
    finally:
        stop()


def start(is_shown: bool = True) -> None:
    """Opens the display of this process; `work` shows nothing without it."""
    global _display  # noqa: PLW0603 - as there is one terminal
    if is_shown and _display is None:
        _display = TerminalDisplay() if console.is_interactive and sys.stderr.isatty() else LineDisplay()


def stop() -> None:
    """Closes the display, and whatever work is still shown."""
    global _display  # noqa: PLW0603
    if _display is not None:
        with suppress(BrokenPipeError):
            _display.stop()
        _display = None


def begin(name: str, total: int | None, unit: str, done: int = 0, *, is_kept: bool = False) -> Work:
    """Begins a piece of work of `total` units; within another one it is shown below it.

    `is_kept` leaves its last state on the terminal.
    """
    return Work(_display, name, total, unit, done, is_kept)


@contextmanager
def work(name: str, total: int | None, unit: str, done: int = 0) -> Iterator[Work]:
    """`begin`, closed at the end."""
    begun = begin(name, total, unit, done)
    try:
        yield begun
    finally:
        begun.close()


def _send_logs_to(stream: Any) -> None:
    """Makes handlers that log to stderr write through `stream`: past the display they would tear it."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    for handler in (handler for logger in loggers for handler in getattr(logger, "handlers", ())):
        if type(handler) is logging.StreamHandler and _is_stderr(handler.stream):
            handler.setStream(stream)


def _is_stderr(stream: Any) -> bool:
    now = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
    return getattr(stream, "rich_proxied_file", stream) in (sys.__stderr__, now)
