r"""The relay's command `<call>n</call>`: "teacher, write the next n tokens". The only place that knows the tag.

A command is plain text in the student's own vocabulary. While decoding it is found by an automaton over token ids
(`CommandTable`); the regular expression `<call>\s*([0-9]+)\s*</call>` on the decoded bytes, with n > 0 and ASCII white
space, is the definition that the automaton is held to. Only what the student writes is read: reading starts afresh
after the prompt, after every teacher span and at every special token, so a tag elsewhere is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from relay_kernels.relay_step.commands import MAX_REQUEST, CommandTable

from relay_lightning.relay.automaton import ASCII_SPACE, build_byte_automaton, compile_table
from relay_lightning.relay.vocabulary import Vocabulary

_BREAK = b"\xff"  # never part of UTF-8 text: nothing matches across it
_FORBIDDEN_IN_TAGS = re.compile(rb"[0-9" + re.escape(ASCII_SPACE) + rb"]")
_COMPLETE = 255
"""Stands for "this token completes a call" among states; no automaton has this state."""


@dataclass(frozen=True, slots=True)
class CommandSpan:
    """A valid call in a student-written segment: the tokens [start, stop), in the segment's coordinates."""

    start: int
    stop: int
    start_byte: int
    """Offset of the first byte of the open tag inside token `start`."""
    stop_byte: int
    """Offset just past the last byte of the close tag inside token `stop - 1`."""
    n: int
    """The number of tokens asked for, from 1 to `MAX_REQUEST`."""


@dataclass(frozen=True)
class CallProtocol:
    """The two tags around the number. Neither may be empty or hold a digit or white space; else ValueError."""

    open_tag: str = "<call>"
    close_tag: str = "</call>"

    def __post_init__(self) -> None:
        for name, tag in (("open_tag", self.open_tag), ("close_tag", self.close_tag)):
            if not tag or _FORBIDDEN_IN_TAGS.search(tag.encode()):
                raise ValueError(f"{name} must be text without digits and white space, got {tag!r}")

    @cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """Matches a valid call in bytes; its one group is n without leading zeros."""
        opened, closed = re.escape(self.open_tag.encode()), re.escape(self.close_tag.encode())
        space = rb"[" + re.escape(ASCII_SPACE) + rb"]*"
        return re.compile(opened + space + rb"0*([1-9][0-9]*)" + space + closed)

    def format(self, n: int) -> str:
        """The command that asks for n tokens, as text."""
        return f"{self.open_tag}{n}{self.close_tag}"

    def spell(self, n: int, vocabulary: Vocabulary) -> list[int]:
        """The command that asks for n tokens as token ids, as it stands inside a text. The only spelling of it.

        Raises ValueError when the vocabulary lacks a part of it.
        """
        text = self.format(n)
        token_ids = vocabulary.spell(text.encode())
        if vocabulary.bytes_of(token_ids) != text.encode():
            raise ValueError(f"the student's vocabulary cannot spell the command {text}; choose another student")
        return token_ids

    def strip(self, text: str) -> str:
        """`text` without its valid calls; the definition on text of what a teacher reads."""
        return self.pattern.sub(b"", text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def compile(self, tokenizer: Any, vocab_size: int | None = None) -> CompiledProtocol:
        """The protocol in the vocabulary of a Transformers tokenizer or a `tokenizers.Tokenizer`.

        `vocab_size`: width of the model's logits, as in `Vocabulary.of`, which says what is raised.
        """
        return self.compile_vocabulary(Vocabulary.of(tokenizer, vocab_size))

    def compile_bytes(
        self, token_bytes: Sequence[bytes | None], encode: Callable[[str], list[int]] | None = None
    ) -> CompiledProtocol:
        """The protocol in a vocabulary given by the bytes of every id (None: a special token).

        `encode` spells a piece of text as token ids; without it pieces are spelled by the longest tokens from the left.
        """
        return self.compile_vocabulary(Vocabulary(token_bytes, encode))

    def compile_vocabulary(self, vocabulary: Vocabulary) -> CompiledProtocol:
        """The protocol in `vocabulary`."""
        automaton = build_byte_automaton(self.open_tag.encode(), self.close_tag.encode())
        return CompiledProtocol(self, compile_table(automaton, vocabulary.token_bytes), vocabulary)


class CompiledProtocol:
    """The protocol in one vocabulary: the table for the decode step, and what the host asks about finished segments.

    A segment is what the student wrote between two hand-overs, as token ids.
    """

    def __init__(self, protocol: CallProtocol, table: CommandTable, vocabulary: Vocabulary) -> None:
        self.protocol = protocol
        self.table = table
        self.vocabulary = vocabulary
        marked = table.next_state.masked_fill(table.is_complete, _COMPLETE)
        self._rows = [bytes(row.tolist()) for row in marked]  # bytes: one lookup on the host takes no tensor

    @property
    def vocab_size(self) -> int:
        return self.table.vocab_size

    def table_of(self, num_token_ids: int) -> CommandTable:
        """The table for a student that only writes ids below `num_token_ids`."""
        table = self.table
        if num_token_ids == table.vocab_size:
            return table
        names = ("next_state", "is_complete", "is_opening", "digit_action")
        return replace(table, **{name: getattr(table, name)[:, :num_token_ids].contiguous() for name in names})

    @property
    def token_bytes(self) -> list[bytes | None]:
        """The bytes of every token id; None for a special token."""
        return self.vocabulary.token_bytes

    def spell(self, n: int) -> list[int]:
        """The command that asks for n tokens; raises as `CallProtocol.spell` does."""
        return self.protocol.spell(n, self.vocabulary)

    def next_state(self, state: int, token: int) -> tuple[int, bool]:
        """Returns the automaton's state after a token of the student, and True if it completes a call.

        State 0, where a segment begins and a call ends, means that no command is open.
        """
        after = self._rows[state][token]
        return (0, True) if after == _COMPLETE else (after, False)

    def scan(self, token_ids: Sequence[int]) -> list[CommandSpan]:
        """The valid calls of a segment, in order.

        After each, reading starts afresh with the next token: bytes behind the close tag inside the completing token
        belong to no command.
        """
        spans = []
        state = opened = 0
        for index, token in enumerate(token_ids):
            if state == 0:
                opened = index
            state, is_complete = self.next_state(state, token)
            if is_complete:
                spans.append(self._locate(token_ids, opened, index))
        return spans

    def count_malformed(self, token_ids: Sequence[int]) -> int:
        """Open tags of a segment, fully written, that did not become a valid call: no number, zero, junk or no end."""
        last_bytes = {span.stop - 1: span.stop_byte for span in self.scan(token_ids)}
        pieces = []
        for index, token in enumerate(token_ids):
            data = self.token_bytes[token]
            pieces.append(_BREAK if data is None else data)
            if index in last_bytes:
                pieces[-1] = pieces[-1][: last_bytes[index]] + _BREAK
        return self.protocol.pattern.sub(_BREAK, b"".join(pieces)).count(self.protocol.open_tag.encode())

    def strip_commands(self, token_ids: Sequence[int], spans: Sequence[CommandSpan]) -> list[int]:
        """The teacher's view of a segment: `token_ids` without the commands that `scan` found.

        Whole tokens stay as they are. Where a token straddles the edge of a command, its other bytes are spelled alone.
        """
        kept: list[int] = []
        position = 0
        for span in spans:
            head = self.token_bytes[token_ids[span.start]] or b""
            tail = self.token_bytes[token_ids[span.stop - 1]] or b""
            kept += token_ids[position : span.start]
            kept += self.vocabulary.spell(head[: span.start_byte]) + self.vocabulary.spell(tail[span.stop_byte :])
            position = span.stop
        return [*kept, *token_ids[position:]]

    def _locate(self, token_ids: Sequence[int], opened: int, completing: int) -> CommandSpan:
        """The span of the call that token `completing` completes, if the automaton last left its start at `opened`."""
        pieces = [self.token_bytes[token] or b"" for token in token_ids[opened : completing + 1]]
        match = self.protocol.pattern.search(b"".join(pieces))
        assert match, "the automaton and the regular expression disagree"
        start, start_byte = opened, match.start()
        while start_byte >= len(pieces[start - opened]):
            start_byte -= len(pieces[start - opened])
            start += 1
        stop_byte = match.end() - sum(len(piece) for piece in pieces[:-1])
        n = int(match[1]) if len(match[1]) <= len(str(MAX_REQUEST)) else MAX_REQUEST
        return CommandSpan(start, completing + 1, start_byte, stop_byte, n)
