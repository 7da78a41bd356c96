"""A small vocabulary in which commands are spelled in several ways, some of them straddling other text."""

from __future__ import annotations

from relay_lightning.relay.protocol import CallProtocol, CompiledProtocol

EOS = 0
_PIECES = ["<call>", "</call>", "<call", ">1", "2</call", ">.", "x<", "</", "call", "12", *"<>/cal0123456789. xyz"]
VOCABULARY: list[bytes | None] = [None, None, *(piece.encode() for piece in _PIECES)]
VOCAB_SIZE = len(VOCABULARY)
FIRST_LETTER = _PIECES.index("x") + 2
"""x, y and z: letters that are in no tag."""


def spell(text: str) -> list[int]:
    """Token ids of `text`, longest tokens first."""
    token_ids = []
    data = text.encode()
    while data:
        token = max((t for t in VOCABULARY if t and data.startswith(t)), key=len)
        token_ids.append(VOCABULARY.index(token))
        data = data[len(token) :]
    return token_ids


def small_protocol() -> CompiledProtocol:
    return CallProtocol().compile_bytes(VOCABULARY)
