"""Which bytes each token of a tokenizer stands for, inside a text.

Tokenizers of the `tokenizers` library (byte-level BPE, SentencePiece with Metaspace or byte fallback, characters,
words) are read off their decoder, to the byte. Any other one is asked to decode each token behind another token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    """The bytes of every token id, as they stand inside a text; None for special tokens and for ids that name no token.

    `tokenizer` is a Transformers tokenizer or a `tokenizers.Tokenizer`. An added token that is not special is plain
    text. A token that alone is no text (part of a character, in a tokenizer that only decodes text) counts as U+FFFD.
    Raises ValueError for an object without `get_vocab`, an empty vocabulary, and a decoder step not known here.
    """
    if not hasattr(tokenizer, "get_vocab"):
        raise ValueError(f"{type(tokenizer).__name__} has no get_vocab(): a command automaton needs a tokenizer")
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if not vocabulary:
        raise ValueError(f"the vocabulary of this {type(tokenizer).__name__} is empty")
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    special = _special_ids(tokenizer, backend)
    plain = {token: token_id for token, token_id in vocabulary.items() if token_id not in special}
    if hasattr(backend, "decoder") and hasattr(backend, "to_str"):
        read_token = _decoder_reader(backend.decoder)
        read = {token_id: read_token(token) for token, token_id in plain.items()}
    else:
        read = _decode_behind_anchor(tokenizer, plain)
    return [read.get(token_id) for token_id in range(max(vocabulary.values()) + 1)]


def _special_ids(tokenizer: Any, backend: Any) -> set[int]:
    """Ids that decoding may leave out: they are no text."""
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if added is None:
        added = backend.get_added_tokens_decoder()
    named = {token_id for token_id, token in added.items() if token.special}
    return named | set(getattr(tokenizer, "all_special_ids", ()))


def _decoder_reader(decoder: Any) -> Callable[[str], bytes]:
    """The function from a vocabulary entry to bytes that a decoder of the `tokenizers` library stands for."""
    if decoder is None:  # such a tokenizer joins its tokens with spaces
        return lambda token: b" " + token.encode()
    steps = [_step_reader(step) for step in _steps_before_fuse(json.loads(decoder.__getstate__()))]

    def read(token: str) -> bytes:
        value: str | bytes = token
        for step in steps:
            value = step(value) if isinstance(value, str) else value
        return value.encode() if isinstance(value, str) else value

    return read


def _steps_before_fuse(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps that see single tokens. Later ones see the joined text and trim its ends; no inner token feels that."""
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    return steps[: kinds.index("Fuse")] if "Fuse" in kinds else steps


def _step_reader(step: dict[str, Any]) -> Callable[[str], str | bytes]:
    """What one decoder step makes of a token that has others before and after it."""
    match step:
        case {"type": "ByteLevel"}:
            return _read_byte_level
        case {"type": "ByteFallback"}:
            return _read_byte_fallback
        case {"type": "Metaspace", "replacement": replacement}:
            return lambda token: token.replace(replacement, " ")
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return lambda token: token.replace(old, new)
        case {"type": "WordPiece", "prefix": prefix}:
            return lambda token: token.removeprefix(prefix) if token.startswith(prefix) else " " + token
        case {"type": "BPEDecoder", "suffix": suffix}:
            return lambda token: token.replace(suffix, " ")
    raise ValueError(f"the tokenizer's decoder has a step {step} whose effect on single tokens is not known")


def _read_byte_level(token: str) -> str | bytes:
    """The bytes whose stand-ins spell the token; an added token with other characters is text."""
    if all(character in _BYTE_LEVEL_ALPHABET for character in token):
        return bytes(_BYTE_LEVEL_ALPHABET[character] for character in token)
    return token


def _read_byte_fallback(token: str) -> str | bytes:
    """The byte that `<0xHH>` names; any other token is text."""
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's stand-in characters: printable Latin-1 bytes stand for themselves, the others for U+0100 and upward."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


_BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


def _decode_behind_anchor(tokenizer: Any, vocabulary: dict[str, int]) -> dict[int, bytes]:
    """The bytes that each token adds to the text of a token before it; nothing trims it as the start of a text."""

    def decode(token_ids: list[int]) -> str:
        text: str = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    anchor = next((token_id for token_id in vocabulary.values() if decode([token_id]).strip().isalnum()), None)
    if anchor is None:
        raise ValueError(f"no token of this {type(tokenizer).__name__} decodes to a letter or a digit")
    anchor_length = len(decode([anchor]))
    read = {}
    for token, token_id in vocabulary.items():
        text = _read_byte_fallback(token)
        if isinstance(text, str):
            text = decode([anchor, token_id])[anchor_length:] or _UNDECODABLE
        read[token_id] = text.encode() if isinstance(text, str) else text
    return read
