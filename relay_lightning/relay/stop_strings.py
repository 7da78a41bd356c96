"""Stop strings, found in the bytes of tokens as they are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class StopMatcher:
    """Watches one completion for any of its stop strings, which may begin and end inside tokens."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._texts = stop
        self._patterns = [text.encode("utf-8", "surrogatepass") for text in stop]
        self._num_kept = max(map(len, self._patterns)) - 1
        self._tail = b""
        """The newest bytes, too few for a whole stop string."""

    def feed(self, pieces: Iterable[bytes | None]) -> int | None:
        """Reads the bytes of new tokens (None: a special token). Returns the index of the first token that completes a
        stop string, or None."""
        for index, piece in enumerate(pieces):
            window = self._tail + (piece or b"")
            if any(pattern in window for pattern in self._patterns):
                return index
            self._tail = window[max(0, len(window) - self._num_kept) :]
        return None

    def cut(self, text: str) -> str:
        """Returns `text` up to its first stop string."""
        starts = [start for start in (text.find(stop) for stop in self._texts) if start >= 0]
        return text[: min(starts)] if starts else text
