"""Token models for tests: one without weights, and one that puts words into a model's mouth.

Both read their contexts out of the paged cache, so a wrong block gives a wrong context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from relay_kernels import append_kv
from torch import Tensor

from relay_lightning.engine.base import ForwardPass, TokenModel
from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.local_teacher import LocalTeacher
from relay_lightning.relay.policies import Policy
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.requests import CallLimits, RelayRequest
from relay_lightning.types import Completion

Script = Callable[[tuple[int, ...]], int | None]
"""Context -> the token that must follow, or None to let the model decide."""
BIAS = 100.0


class FakeModel:
    """Logits are `logits_of(context)`. Counts the tokens and passes that it was fed."""

    attention_backend = "auto"
    num_parameters = 1

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
        self.num_fed_tokens = 0
        self.num_passes = 0
        self.num_sessions = 0
        self.is_open = False
        self.version = 0
        self.contexts: dict[int, list[int]] = {}
        """What was read last by the row of a block table that begins with each block."""

    @contextmanager
    def session(self) -> Iterator[ForwardPass]:
        self.num_sessions += 1
        self.is_open = True
        yield self
        self.is_open = False

    def weights_version(self) -> int:
        return self.version

    def kv_bytes_per_token(self) -> int:
        return 8

    def extend(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> Tensor:  # noqa: ARG002
        self._read(token_ids, cache, 0)
        return token_ids[..., None].float()

    def step(
        self,
        token_ids: Tensor,
        positions: Tensor,  # noqa: ARG002
        cache: PagedKVCache,
    ) -> tuple[Tensor, Tensor | None]:
        contexts = self._read(token_ids, cache, 0)
        logits = torch.full((len(token_ids), self.vocab_size), torch.nan)
        for row, context in enumerate(contexts):
            if cache.num_new[row]:
                logits[row] = self.logits_of(context)
        return logits, token_ids.float()

    def _read(self, token_ids: Tensor, cache: PagedKVCache, layer: int) -> list[tuple[int, ...]]:
        """Appends tokens to their rows' blocks, as keys of a layer; returns the whole context of every row."""
        self.num_passes += 1
        states = token_ids[:, :, None, None].float()
        inputs = cache.attention_inputs(states, states, states, layer)
        del inputs["query"], inputs["backend"]
        append_kv(**inputs)
        contexts = []
        blocks_of, num_new = cache.pass_table.tolist(), cache.num_new.tolist()
        for row, length in enumerate((cache.num_cached + cache.num_new).tolist()):
            context: list[int] = []
            if num_new[row]:
                blocks = blocks_of[row][: -(-length // cache.block_size)]
                context = cache.keys_of(layer)[blocks].flatten()[:length].long().tolist()
                self.contexts[blocks[0]] = context
            contexts.append(tuple(context))
        self.num_fed_tokens += sum(num_new)
        return contexts


class ScriptedModel(FakeModel):
    """A real model whose next token is forced where the script says so, by a large bias on its logits."""

    def __init__(self, inner: TokenModel, script: Script) -> None:
        super().__init__(
            lambda context: scripted_bias(script(context), inner.vocab_size),
            vocab_size=inner.vocab_size,
            eos_token_ids=inner.eos_token_ids,
            max_context=inner.max_context,
        )
        self.inner = inner

    @contextmanager
    def session(self) -> Iterator[ForwardPass]:
        with self.inner.session() as forward:
            self.forward = forward
            yield self

    def extend(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> Tensor:
        hidden = self.forward.extend(token_ids, positions, cache)
        self._read(token_ids, cache, cache.num_attended)
        return hidden

    def step(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> tuple[Tensor, Tensor | None]:
        logits, hidden = self.forward.step(token_ids, positions, cache)
        contexts = self._read(token_ids, cache, cache.num_attended)
        bias = [self.logits_of(c) if c else torch.zeros(self.vocab_size) for c in contexts]
        return logits + torch.stack(bias), hidden


def scripted_bias(token: int | None, vocab_size: int, eos: int = 0) -> Tensor:
    """[V]: what is added to the logits so that `token` follows; the text ends only where the script says so."""
    bias = torch.zeros(vocab_size)
    if token != eos:
        bias[eos] = -BIAS
    if token is not None:
        bias[token] = BIAS
    return bias


class UniformEngine(RelayEngine):
    """An engine whose requests can be given one sampling, seed, policy and limits, together."""

    def decode(
        self,
        requests: Sequence[RelayRequest],
        sampling: SamplingParams,
        *,
        teacher_sampling: SamplingParams | None = None,
        seed: int = 0,
        policy: str | Policy = "command",
        on_progress: Callable[[int], None] | None = None,
        **limits: Any,
    ) -> list[Completion]:
        common = {"sampling": sampling, "teacher_sampling": teacher_sampling, "seed": seed, "policy": policy}
        limited = [replace(request, **common, limits=CallLimits(**limits)) for request in requests]
        return self.generate(limited, on_progress)


def relay_engine(
    student: TokenModel, teacher: TokenModel | None, protocol: CompiledProtocol, **settings: Any
) -> UniformEngine:
    """An engine over two models of this process, with small KV blocks."""
    settings.setdefault("block_size", 16)
    return UniformEngine(student, None if teacher is None else LocalTeacher(teacher), protocol, **settings)
