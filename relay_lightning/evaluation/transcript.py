"""A completion as coloured text for a terminal; whatever a model wrote is escaped first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from relay_lightning.terminal import escape_terminal
from relay_lightning.types import Completion, RelaySpan, TokenSource

MARKS = ("<teacher>", "</teacher>")
WRITTEN_MARK = re.compile(r"<(/?teacher>)")
STYLES = {"student": "", "command": "dim", "teacher": "bold magenta", "note": "dim italic"}


class Transcriber:
    """Turns pieces of text and their authors into coloured text, as they come.

    Whatever a model wrote is escaped. With `marks_teacher` the teacher's text stands in `<teacher>...</teacher>` as
    well, for where there is no colour; tags that were written as text are escaped then.
    """

    def __init__(self, *, marks_teacher: bool = False) -> None:
        self._marks_teacher = marks_teacher
        self._author = ""
        """Author of the run in progress; empty between two runs."""
        self._held = ""
        """Text that may be the beginning of a tag."""

    def write(self, text: str, author: str) -> Text:
        """Returns how `text` continues the transcript."""
        shown = Text()
        if not text:
            return shown
        if author != self._author:
            shown.append_text(self.end_run())
            self._author = author
            if author == "teacher" and self._marks_teacher:
                shown.append(MARKS[0], style=STYLES[author])
        text, self._held = self._held + escape_terminal(text), ""
        if self._marks_teacher:
            text = WRITTEN_MARK.sub(r"\\x3c\1", text)
            stop = len(text) - _num_open(text)
            text, self._held = text[:stop], text[stop:]
        return shown.append(text, style=STYLES[author])

    def note(self, span: RelaySpan) -> Text:
        """Returns a note behind a command that got another number of tokens than it asked for: `[3 of 9]`."""
        if not is_cut(span):
            return Text()
        note = f"[{span.num_tokens} of {span.num_requested_tokens}]"
        return self.end_run().append(note, style=STYLES["note"])

    def end_run(self) -> Text:
        """Returns what is left of the run in progress."""
        shown, style = Text(), STYLES.get(self._author, "")
        shown.append(self._held, style=style)
        if self._author == "teacher" and self._marks_teacher:
            shown.append(MARKS[1], style=style)
        self._author, self._held = "", ""
        return shown


def transcript(completion: Completion, token_bytes: Sequence[bytes | None], *, marks_teacher: bool = False) -> Text:
    """Returns the completion with the teacher's tokens in colour and the commands that asked for them dimmed.

    Behind a command that got another number of tokens than it asked for stands a note that is no part of the
    completion: `<call>9</call>[3 of 9]`.

    `token_bytes` has the bytes of every token id, None for special tokens, which are not shown
    (`CompiledProtocol.token_bytes`). marks_teacher: as in `Transcriber`.
    """
    spans = {span.start: span for span in completion.spans}
    text, transcriber, position = Text(), Transcriber(marks_teacher=marks_teacher), 0
    for author, token_ids in authored_runs(completion):
        run = b"".join(token_bytes[token_id] or b"" for token_id in token_ids)
        text.append_text(transcriber.write(run.decode(errors="replace"), author))
        position += len(token_ids)
        if author == "command":
            text.append_text(transcriber.note(spans[position]))
    return text.append_text(transcriber.end_run())


def is_cut(span: RelaySpan) -> bool:
    """True for a command that got another number of tokens than it asked for."""
    return span.num_command_tokens > 0 and span.num_tokens != span.num_requested_tokens


def has_colour(console: Console) -> bool:
    """False in a file or a pipe, and where NO_COLOR asks for none."""
    return console.color_system is not None and not console.no_color


def verbatim(text: str) -> str:
    """A Markdown block that shows `text` as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def authored_runs(completion: Completion) -> Iterator[tuple[str, list[int]]]:
    """Runs of tokens with one author: ("student" | "command" | "teacher", token ids), in order; a command is a run."""
    authors = [("teacher" if source == TokenSource.TEACHER else "student", 0) for source in completion.token_source]
    for number, span in enumerate(completion.spans):
        authors[span.command_start : span.start] = [("command", number)] * span.num_command_tokens
    for (author, _), run in groupby(zip(authors, completion.token_ids, strict=True), key=lambda pair: pair[0]):
        yield author, [token_id for _, token_id in run]


def _num_open(text: str) -> int:
    """Returns the length of the end of `text` that may be the beginning of a mark."""
    start = text.rfind("<")
    return len(text) - start if start >= 0 and any(mark.startswith(text[start:]) for mark in MARKS) else 0
