"""What the relay decoder needs of a model. Shapes: S slots, N rows of a call, T tokens of a chunk, V vocabulary."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor


class TokenEngine(Protocol):
    """A causal language model with S cache slots, named by int64 tensors on `device`, distinct within a call."""

    @property
    def vocab_size(self) -> int:
        """V: width of the logits."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Token ids that end a text."""

    @property
    def max_context(self) -> int:
        """Tokens that a slot can hold at most by the model's construction."""

    @property
    def device(self) -> torch.device: ...

    @property
    def lengths(self) -> Tensor:
        """[S] int64: tokens in each slot's cache."""

    @property
    def step_shape(self) -> int:
        """What the device's work of the next `step` depends on beside the shapes of its arguments."""

    def session(self) -> AbstractContextManager[None]:
        """Holds while the engine is decoded with: no gradients, no dropout. Restores what it changed."""

    def allocate(self, num_slots: int, max_length: int) -> None:
        """Makes room for `num_slots` slots of `max_length` tokens, all empty."""

    def truncate(self, slots: Tensor, lengths: Tensor) -> None:
        """Forgets all but the first lengths[i] tokens of slots[i]; both [N]."""

    def copy_prefix(self, source: int, targets: Tensor, length: int) -> None:
        """Makes the first `length` tokens of slot `source` the whole contents of each slot of `targets` [N]."""

    def tighten(self, longest: int) -> None:
        """Tells the engine that no slot in use is longer than `longest` tokens, where the caller happens to know."""

    def extend(self, slots: Tensor, token_ids: Tensor, num_new: Tensor) -> None:
        """Reads the first num_new[i] tokens of token_ids[i] into slots[i]; [N, T] int64 and [N]."""

    def step(self, token_ids: Tensor, is_active: Tensor, slots: Tensor | None = None) -> Tensor:
        """Reads one token a row and returns the logits after it, [N, V].

        token_ids: [N] int64; is_active: [N] bool, rows of False keep their cache as it is and get meaningless logits;
        slots: [N], or None for all S slots in order.
        """

    def count_step(self) -> None:
        """Tells the engine that the device has repeated its last `step` without the host's part in it."""
