"""Encoding a text as it stands behind other text, where a tokenizer puts a space before the start of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

ANCHORS = ("\n", "a", "0", ".", ")")
"""Texts to encode before the one that is wanted. Several, because a tokenizer may drop an anchor or merge it."""


def continuations(encode: Callable[[str], list[int]], text: str) -> Iterator[list[int]]:
    """Yields token ids of `text` without what `encode` adds at the start of a text, such as SentencePiece's space.

    Each comes from encoding an anchor with `text` behind it and cutting off the anchor's own token ids. Nothing is
    yielded when the text changes how every anchor is encoded.
    """
    for anchor in ANCHORS:
        own = encode(anchor)
        token_ids = encode(anchor + text)
        if own and token_ids[: len(own)] == own:
            yield token_ids[len(own) :]
