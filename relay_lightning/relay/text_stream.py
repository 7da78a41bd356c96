"""TextStream: the text of one completion in pieces, as its tokens are written."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.requests import RequestOutput
from relay_lightning.types import Completion, RelaySpan, TokenSource

Author = Literal["student", "teacher", "command"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one author."""

    text: str
    author: Author
    """`command`: the student asked for the teacher with it."""
    span: RelaySpan | None = None
    """The span that the teacher has finished, in a piece without text of its own before the span's text."""
    completion: Completion | None = None
    """The whole completion, with its last piece."""


class TextStream:
    """Turns the outputs of a request into pieces of text.

    Text is held back while it may become something else: a command as long as it is open, and what may be the beginning
    of a stop string. The pieces join to the completion's text.
    """

    def __init__(self, protocol: CompiledProtocol, stop: Sequence[str] = (), max_calls: int | None = None) -> None:
        """max_calls: commands beyond so many stand as the student's text; None is no limit."""
        self._protocol = protocol
        self._stop = stop
        self._calls_left = math.inf if max_calls is None else max_calls
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._state = 0
        """State of the command automaton."""
        self._open: list[int] = []
        """Student tokens that may be part of a command."""
        self._held: list[Piece] = []
        """Text that may be part of a stop string."""
        self._num_read = 0
        """Tokens that have been read."""
        self._num_given = 0
        """Characters of all pieces so far."""

    def feed(self, output: RequestOutput) -> Iterator[Piece]:
        """Yields the pieces that an output makes certain."""
        spans = {span.start: span for span in output.spans}
        for token, source in zip(output.token_ids, output.token_source, strict=True):
            self._announce(spans.get(self._num_read))
            self._read(token, source)
            self._num_read += 1
        self._announce(spans.get(self._num_read))
        if output.completion is not None:
            self._release("student")
            self._hold(self._decoder.decode(b"", final=True), "student")
            yield from self._finish(output.completion)
        else:
            yield from self._give(self._num_certain())

    def _read(self, token: int, source: TokenSource) -> None:
        if source == TokenSource.TEACHER:
            self._release("student")
            self._state = 0
            self._decode([token], "teacher")
            return
        self._open.append(token)
        self._state, is_complete = self._protocol.next_state(self._state, token)
        if is_complete and self._calls_left:
            [command] = self._protocol.scan(self._open)
            self._decode(self._open[: command.start], "student")
            self._open = self._open[command.start :]
            self._release("command")
            self._calls_left -= 1
        elif self._state == 0 or not self._calls_left:
            self._release("student")

    def _announce(self, span: RelaySpan | None) -> None:
        if span is not None:
            self._release("student")
            self._state = 0
            self._held.append(Piece("", "teacher", span))

    def _release(self, author: Author) -> None:
        self._decode(self._open, author)
        self._open = []

    def _decode(self, token_ids: Sequence[int], author: Author) -> None:
        self._hold(self._decoder.decode(self._protocol.vocabulary.bytes_of(token_ids)), author)

    def _hold(self, text: str, author: Author) -> None:
        if not text:
            return
        if self._held and self._held[-1].author == author and self._held[-1].span is None:
            text = self._held.pop().text + text
        self._held.append(Piece(text, author))

    def _num_certain(self) -> int:
        """Returns how many held characters cannot be part of a stop string any more."""
        text = "".join(piece.text for piece in self._held)
        longest = max(map(len, self._stop), default=0)
        for start in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop):
                return start
        return len(text)

    def _give(self, count: int) -> Iterator[Piece]:
        """Yields the first `count` held characters."""
        self._num_given += count
        while self._held and (count > 0 or not self._held[0].text):
            piece = self._held.pop(0)
            if len(piece.text) > count:
                self._held.insert(0, Piece(piece.text[count:], piece.author))
                piece = Piece(piece.text[:count], piece.author)
            yield piece
            count -= len(piece.text)

    def _finish(self, completion: Completion) -> Iterator[Piece]:
        """Yields the rest of the completion's text, which may end before a stop string."""
        pieces = list(self._give(len(completion.text) - self._num_given))
        last = pieces.pop() if pieces else Piece("", "student")
        yield from pieces
        yield replace(last, completion=completion)
