"""Token engines for tests: one without a model, and one that puts words into a model's mouth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from relay_lightning.engine.base import TokenEngine

Script = Callable[[tuple[int, ...]], int | None]
"""Context -> the token that must follow, or None to let the model decide."""
BIAS = 100.0


class FakeEngine:
    """Logits are `logits_of(context)`. Keeps every slot's context in `contexts` and counts the tokens it was fed."""

    def __init__(
        self,
        logits_of: Callable[[tuple[int, ...]], Tensor],
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...] = (0,),
        max_context: int = 10_000,
    ) -> None:
        self.logits_of = logits_of
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.max_context = max_context
        self.device = torch.device("cpu")
        self.contexts: list[list[int]] = []
        self.num_fed_tokens = 0
        self.num_passes = 0

    @property
    def lengths(self) -> Tensor:
        return torch.tensor([len(context) for context in self.contexts])

    @contextmanager
    def session(self) -> Iterator[None]:
        yield

    def allocate(self, num_slots: int, max_length: int) -> None:
        self.contexts = [[] for _ in range(num_slots)]
        self.max_length = max_length

    def truncate(self, slots: Tensor, lengths: Tensor) -> None:
        for slot, length in zip(slots.tolist(), lengths.tolist(), strict=True):
            del self.contexts[slot][length:]

    def copy_prefix(self, source: int, targets: Tensor, length: int) -> None:
        assert len(self.contexts[source]) >= length
        for slot in targets.tolist():
            self.contexts[slot] = self.contexts[source][:length]

    def tighten(self, longest: int) -> None:
        """Nothing to tighten: every context has its own length."""

    def extend(self, slots: Tensor, token_ids: Tensor, num_new: Tensor) -> None:
        self.num_passes += 1
        for slot, row, count in zip(slots.tolist(), token_ids.tolist(), num_new.tolist(), strict=True):
            self._feed(slot, row[:count])

    def step(self, token_ids: Tensor, is_active: Tensor, slots: Tensor | None = None) -> Tensor:
        self.num_passes += 1
        logits = torch.full((len(token_ids), self.vocab_size), torch.nan)
        chosen = range(len(self.contexts)) if slots is None else slots.tolist()
        for row, slot in enumerate(chosen):
            if is_active[row]:
                self._feed(slot, [int(token_ids[row])])
                logits[row] = self.logits_of(tuple(self.contexts[slot]))
        return logits

    @property
    def step_shape(self) -> int:
        return 0

    def count_step(self) -> None:
        raise AssertionError("what a fake engine does cannot be repeated by a device")

    def _feed(self, slot: int, token_ids: Sequence[int]) -> None:
        self.contexts[slot] += token_ids
        self.num_fed_tokens += len(token_ids)
        assert len(self.contexts[slot]) <= self.max_length, "a slot was filled beyond what was allocated"


class ScriptedEngine(FakeEngine):
    """A real engine whose next token is forced where the script says so, by a large bias on its logits."""

    def __init__(self, inner: TokenEngine, script: Script) -> None:
        super().__init__(
            lambda context: scripted_bias(script(context), inner.vocab_size),
            vocab_size=inner.vocab_size,
            eos_token_ids=inner.eos_token_ids,
            max_context=inner.max_context,
        )
        self.inner = inner

    def session(self):
        return self.inner.session()

    def allocate(self, num_slots: int, max_length: int) -> None:
        super().allocate(num_slots, max_length)
        self.inner.allocate(num_slots, max_length)

    def truncate(self, slots: Tensor, lengths: Tensor) -> None:
        super().truncate(slots, lengths)
        self.inner.truncate(slots, lengths)

    def copy_prefix(self, source: int, targets: Tensor, length: int) -> None:
        super().copy_prefix(source, targets, length)
        self.inner.copy_prefix(source, targets, length)

    def tighten(self, longest: int) -> None:
        self.inner.tighten(longest)

    def extend(self, slots: Tensor, token_ids: Tensor, num_new: Tensor) -> None:
        super().extend(slots, token_ids, num_new)
        self.inner.extend(slots, token_ids, num_new)
        assert self.inner.lengths.tolist() == self.lengths.tolist()

    def step(self, token_ids: Tensor, is_active: Tensor, slots: Tensor | None = None) -> Tensor:
        bias = super().step(token_ids, is_active, slots).nan_to_num(0.0)
        logits = self.inner.step(token_ids, is_active, slots) + bias
        assert self.inner.lengths.tolist() == self.lengths.tolist()
        return logits


def scripted_bias(token: int | None, vocab_size: int, eos: int = 0) -> Tensor:
    """[V]: what is added to the logits so that `token` follows; the text ends only where the script says so."""
    bias = torch.zeros(vocab_size)
    if token != eos:
        bias[eos] = -BIAS
    if token is not None:
        bias[token] = BIAS
    return bias
