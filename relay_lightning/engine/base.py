"""Protocols of a model that the relay decodes with.

Shapes: N rows of a pass, T new tokens of a row, E hidden size, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from relay_lightning.engine.kv_cache import PagedKVCache


class ForwardPass(Protocol):
    """A model in evaluation mode, ready to run over a paged cache. Passes are announced with `PagedKVCache.begin`."""

    def extend(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> Tensor:
        """Returns the hidden states of the new tokens, [N, T, E]; appends their keys and values to `cache`.

        token_ids, positions: [N, T] int64.
        """

    def step(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> tuple[Tensor, Tensor | None]:
        """Returns the logits after one new token a row, [N, V], and its last hidden states, [N, E], if at hand."""


class TokenModel(Protocol):
    """A causal language model over token ids."""

    @property
    def vocab_size(self) -> int:
        """V: width of the logits."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Token ids that end a text."""

    @property
    def max_context(self) -> int:
        """Tokens that a sequence can have at most by the model's construction."""

    @property
    def device(self) -> torch.device: ...

    @property
    def num_parameters(self) -> int: ...

    @property
    def attention_backend(self) -> str:
        """Backend of `decode_attention`."""

    def session(self) -> AbstractContextManager[ForwardPass]:
        """Opens the model for decoding, without dropout; the caller turns gradients off. Restores what it changed.

        The same object is returned as long as the weights stay where they are, so that CUDA graphs of its passes stay
        valid.
        """

    def kv_bytes_per_token(self) -> int:
        """Returns the size of the keys and values of one token. Called within a session, under its autocast."""

    def weights_version(self) -> int:
        """Returns a number that changes whenever the weights have been written to."""
