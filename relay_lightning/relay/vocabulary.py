"""A vocabulary as bytes: what its token ids say, and which ids say a piece of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from relay_lightning.models.continuation import continuations
from relay_lightning.relay.token_bytes import token_bytes


class Vocabulary:
    """The bytes of every token id (None: a special token, no text), and how a piece of text is spelled."""

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        encode: Callable[[str], list[int]] | None = None,
        num_token_ids: int | None = None,
    ) -> None:
        """encode: the tokenizer's own spelling of a text; without it texts are spelled by the longest tokens from the
        left. num_token_ids: as the attribute; by default all."""
        self.token_bytes = list(token_bytes)
        self.num_token_ids = len(self.token_bytes) if num_token_ids is None else num_token_ids
        """Ids up to the highest that the tokenizer names; a model may have rows for more, as padding."""
        self._encode = encode

    @classmethod
    def of(cls, tokenizer: Any, size: int | None = None) -> Vocabulary:
        """The vocabulary of a Transformers tokenizer or a `tokenizers.Tokenizer`.

        size: width of the model's logits, where it differs from the tokenizer's. Ids that the tokenizer does not know
        are no text; ids that the model does not have are left out. Raises as `token_bytes` does.
        """

        def encode(text: str) -> list[int]:
            encoding = tokenizer.encode(text, add_special_tokens=False)
            return list(getattr(encoding, "ids", encoding))

        spelled = token_bytes(tokenizer)
        width = len(spelled) if size is None else size
        return cls([*spelled[:width], *[None] * (width - len(spelled))], encode, min(len(spelled), width))

    def __len__(self) -> int:
        return len(self.token_bytes)

    def bytes_of(self, token_ids: Sequence[int]) -> bytes:
        """What token ids say; special tokens and ids beyond the vocabulary say nothing."""
        known = (self.token_bytes[token] for token in token_ids if 0 <= token < len(self))
        return b"".join(data for data in known if data is not None)

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens; half a character becomes U+FFFD."""
        return self.bytes_of(token_ids).decode("utf-8", errors="replace")

    def spell(self, data: bytes) -> list[int]:
        """Token ids of a piece of text as it stands inside a text, without a space before it or special tokens.

        They are the tokenizer's own (`continuations`) if they say just that, else the longest from the left. What no
        token can say (half a character, without byte tokens) is left out.
        """
        if self._encode is not None and data:
            text = data.decode("utf-8", "replace")
            for token_ids in chain([self._encode(text)], continuations(self._encode, text)):
                if self._says(token_ids, data):
                    return token_ids
        spelled: list[int] = []
        position = 0
        while position < len(data):
            size = next((n for n in range(self._longest, 0, -1) if data[position : position + n] in self._ids), None)
            if size is not None:
                # Near the end of the data a slice is shorter than n.
                piece = data[position : position + size]
                spelled.append(self._ids[piece])
                position += len(piece)
            else:
                position += 1
        return spelled

    def _says(self, token_ids: Sequence[int], data: bytes) -> bool:
        """Whether the token ids are plain text, all of it `data`."""
        said = [self.token_bytes[token] if token < len(self) else None for token in token_ids]
        return None not in said and b"".join(filter(None, said)) == data

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        """The highest token id of every byte string: SentencePiece lists its bare bytes before its pieces."""
        return {data: token for token, data in enumerate(self.token_bytes) if data}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)
