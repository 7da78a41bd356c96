"""Vocabularies of every family, compiled once per session, and random student text in their tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import pytest
from qwen_vocabulary import qwen_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from relay_lightning.relay.protocol import CallProtocol, CompiledProtocol
from relay_lightning.tiny import tokenizer as tiny_tokenizer

FRAGMENTS = (
    *("<call>", "</call>", "<call>5</call>", " <call>12</call>.\n", "?<call>\t007\r\n</call>>", "<call>0</call>"),
    *("<call", "call>", "</call", "<", ">", "/", "</", "<c", "call", "</>", "<call><call>3</call>", "<call>3<call>"),
    *("1", "20", "345", "00", "9" * 12, " ", "\n", "\f\v", ".", "x", "so, ", "é", "中"),
)
"""Pieces of text that a confused student might write around a command."""


@dataclass(frozen=True)
class Vocabulary:
    """A compiled vocabulary and what a test needs to write random text in it."""

    name: str
    compiled: CompiledProtocol
    tokenizer: Any | None
    ids_of_bytes: dict[bytes, list[int]]
    nasty_ids: list[int]
    """Special tokens, and tokens with a byte of the tag, a digit or white space."""

    def spell(self, data: bytes, rng: Random) -> list[int]:
        """`data` as tokens, cut at random places; bytes that no token begins with are left out."""
        token_ids: list[int] = []
        while data:
            sizes = [size for size in range(1, min(len(data), 24) + 1) if data[:size] in self.ids_of_bytes]
            size = rng.choice([*sizes, max(sizes)]) if sizes else 1
            if sizes:
                token_ids.append(rng.choice(self.ids_of_bytes[data[:size]]))
            data = data[size:]
        return token_ids

    def random_stream(self, rng: Random) -> list[int]:
        """Student tokens: fragments of commands cut at random, broken up by random tokens."""
        token_ids: list[int] = []
        for _ in range(rng.randint(0, 4)):
            text = "".join(rng.choice(FRAGMENTS) for _ in range(rng.randint(1, 5)))
            token_ids += self.spell(text.encode(), rng)
            if rng.random() < 0.5:
                token_ids.append(rng.choice(self.nasty_ids))
            if rng.random() < 0.2:
                token_ids.append(rng.randrange(self.compiled.vocab_size))
        return token_ids


def make_vocabulary(name: str, compiled: CompiledProtocol, tokenizer: Any | None = None) -> Vocabulary:
    ids_of_bytes = defaultdict(list)
    nasty_ids = []
    for token, data in enumerate(compiled.token_bytes):
        if data:
            ids_of_bytes[data].append(token)
        if data is None or (len(data) < 24 and set(data) & set(b"<>/cal0123456789 \n")):
            nasty_ids.append(token)
    return Vocabulary(name, compiled, tokenizer, dict(ids_of_bytes), nasty_ids)


def sentencepiece_tokenizer(*, byte_fallback: bool = True) -> Tokenizer:
    """A unigram model in SentencePiece's manner: spaces as U+2581, byte pieces, and pieces that straddle the tag."""
    words = ["▁", "▁<", "<", ">", "/", "</", "call", "▁call", "c", "a", "l", ">.", "▁?<", "?<", "▁<call", "call>"]
    words += ["</call", "></", "<call><", "▁</call>▁", "x</call>y", ".", "x", "▁so", ",", "\n", "▁▁", "12", "345", "00"]
    words += ["12</", ">7", *"0123456789", "▁128", "?", "y"]
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((piece, -20.0) for piece in byte_pieces)]
    pieces += [(word, -1.0 / len(word)) for word in words]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback))
    if byte_fallback:  # as Llama 2 and Gemma ship it
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:  # as T5 and XLM-R ship it
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def character_tokenizer() -> Tokenizer:
    """One token per character of a small alphabet."""
    alphabet = "<>/cal0123456789 \n\t\r\f\v.x,so?é"
    characters = ["<unk>", "<eos>", *dict.fromkeys(alphabet)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "<eos>"])
    return tokenizer


BYTE_TOKENS: list[bytes | None] = [*(bytes([byte]) for byte in range(256)), None]

STRADDLING_TOKENS: list[bytes | None] = [
    *BYTE_TOKENS,
    *(b"<call>5</call>", b"a<call>5</call>b", b"</call><call>7", b"0</call><call>3</call>", b"<call><", b"12<call>34"),
    *(b"1</call", b">\xe2", b"\xff<", b"", b"<call>00", b"99999999999", b"000000000000", b"<call>1 2</call>", b"l>4"),
    *(b"5</call>6</call>", b"<call>1</call><call>2</call>", b"<<", b">>", b"</c", b"call>3<"),
]
"""Single bytes, a special token, and tokens that hold several parts of a command, or several commands."""


VOCABULARIES = {
    "bytes": lambda: (CallProtocol().compile_bytes(BYTE_TOKENS), None),
    "straddling": lambda: (CallProtocol().compile_bytes(STRADDLING_TOKENS), None),
    "characters": lambda: _compiled(character_tokenizer()),
    "sentencepiece": lambda: _compiled(sentencepiece_tokenizer()),
    "metaspace": lambda: _compiled(sentencepiece_tokenizer(byte_fallback=False)),
    "tiny": lambda: _compiled(tiny_tokenizer.train_tokenizer()),
    "qwen": lambda: _compiled(qwen_tokenizer(), vocab_size=151_936),
}


def _compiled(tokenizer: Tokenizer, vocab_size: int | None = None) -> tuple[CompiledProtocol, Tokenizer]:
    return CallProtocol().compile(tokenizer, vocab_size), tokenizer


@pytest.fixture(scope="session")
def get_vocabulary() -> Callable[[str], Vocabulary]:
    """A vocabulary by its name in `VOCABULARIES`, made once."""
    return cache(lambda name: make_vocabulary(name, *VOCABULARIES[name]()))


@pytest.fixture(scope="session", params=list(VOCABULARIES))
def vocabulary(request: pytest.FixtureRequest, get_vocabulary: Callable[[str], Vocabulary]) -> Vocabulary:
    """Each vocabulary in turn."""
    return get_vocabulary(request.param)


@pytest.fixture(scope="session")
def bytes_protocol(get_vocabulary: Callable[[str], Vocabulary]) -> CompiledProtocol:
    """The protocol over single bytes, id = byte; id 256 is a special token."""
    return get_vocabulary("bytes").compiled
