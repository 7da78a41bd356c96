"""A completion as coloured text for a terminal; whatever a model wrote is escaped first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.text import Text

from relay_lightning.terminal import escape_terminal
from relay_lightning.types import Completion, RelaySpan, TokenSource

WRITTEN_MARK = re.compile(r"<(/?teacher>)")
STYLES = {"student": "", "command": "dim", "teacher": "bold magenta", "note": "dim italic"}


def transcript(completion: Completion, token_bytes: Sequence[bytes | None], *, marks_teacher: bool = False) -> Text:
    """The completion with the teacher's tokens in colour and the commands that asked for them dimmed.

    Behind a command that got another number of tokens than it asked for stands a note that is no part of the
    completion: `<call>9</call>[3 of 9]`.

    `token_bytes` has the bytes of every token id, None for special tokens, which are not shown
    (`CompiledProtocol.token_bytes`). `marks_teacher` puts them into `<teacher>...</teacher>` as well, for where there
    is no colour; tags that were written as text are escaped then.
    """
    notes = {
        span.start: f"[{span.num_tokens} of {span.num_requested_tokens}]" for span in completion.spans if is_cut(span)
    }
    text, position = Text(), 0
    for author, token_ids in authored_runs(completion):
        run = b"".join(token_bytes[token_id] or b"" for token_id in token_ids)
        shown = escape_terminal(run.decode(errors="replace"))
        if marks_teacher:
            shown = WRITTEN_MARK.sub(r"\\x3c\1", shown)
            shown = f"<teacher>{shown}</teacher>" if author == "teacher" else shown
        text.append(shown, style=STYLES[author])
        position += len(token_ids)
        if author == "command" and position in notes:
            text.append(notes[position], style=STYLES["note"])
    return text


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
