"""A completion as coloured text for a terminal; whatever a model wrote is escaped first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.text import Text

from relay_lightning.terminal import escape_terminal
from relay_lightning.types import Completion, TokenSource

STYLES = {"student": "", "command": "dim", "teacher": "bold magenta"}


def transcript(completion: Completion, token_bytes: Sequence[bytes | None]) -> Text:
    """The completion with the teacher's tokens in colour and the commands that asked for them dimmed.

    `token_bytes` has the bytes of every token id, None for special tokens, which are not shown
    (`CompiledProtocol.token_bytes`).
    """
    text = Text()
    for author, token_ids in authored_runs(completion):
        run = b"".join(token_bytes[token_id] or b"" for token_id in token_ids)
        text.append(escape_terminal(run.decode(errors="replace")), style=STYLES[author])
    return text


def authored_runs(completion: Completion) -> Iterator[tuple[str, list[int]]]:
    """Runs of tokens with one author: ("student" | "command" | "teacher", token ids), in order."""
    authors = ["teacher" if source == TokenSource.TEACHER else "student" for source in completion.token_source]
    for span in completion.spans:
        authors[span.command_start : span.start] = ["command"] * span.num_command_tokens
    for author, run in groupby(zip(authors, completion.token_ids, strict=True), key=lambda pair: pair[0]):
        yield author, [token_id for _, token_id in run]
