"""A Hugging Face decoder model in this process as a token engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, Cache, PreTrainedModel

from relay_lightning.engine.blocks import Blocks, can_run_blocks
from relay_lightning.engine.kv_cache import SlotKVCache
from relay_lightning.engine.turns import DECODING
from relay_lightning.models.architecture import (
    check_supported,
    constant_rotation,
    eos_token_ids,
    max_context,
)
from relay_lightning.models.evaluating import evaluating
from relay_lightning.models.settings import FLASH_ATTENTION
from relay_lightning.models.sharding import gathered
from relay_lightning.threads import decode_threads, yield_cores

SLOT_ATTENTION = "relay_slots"
"""Name of the attention function that a model has during a session."""
NOT_PLAIN = ("softcap", "s_aux", "position_bias")
"""What models hand to an attention function that changes its result."""
_CACHE: ContextVar[SlotKVCache] = ContextVar("_CACHE")
"""The cache of the forward pass in progress, for its attention function: not all models hand arguments on to it."""


class LocalEngine:
    """`TokenEngine` over the live weights of `model`, which may be in training; a PEFT model is used with its adapters.

    Works with any causal model whose layers attend through Transformers' attention interface: within a session their
    attention function is `relay_kernels.decode_attention` over slots, and positions are given explicitly. Raises
    ValueError for a model that cannot be run so.
    """

    def __init__(
        self, model: torch.nn.Module, *, max_context: int | None = None, end_token_ids: Sequence[int] = ()
    ) -> None:
        """end_token_ids: what ends a text beside the ids that the model's own configs name."""
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        check_supported(causal_lm, max_context)
        self.model: PreTrainedModel = causal_lm
        self._has_blocks = can_run_blocks(causal_lm)
        self._blocks: Blocks | None = None
        self._max_context = max_context
        self._end_token_ids = tuple(end_token_ids)
        self._attention_backend = "auto"
        self._cache = SlotKVCache(0, 0, self.device)
        self._is_in_session = False
        self._num_parameters = sum(parameter.numel() for parameter in causal_lm.parameters())

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        named = dict.fromkeys((*self._end_token_ids, *eos_token_ids(self.model)))
        return tuple(token for token in named if 0 <= token < self.vocab_size)

    @property
    def max_context(self) -> int:
        if self._max_context is None:
            return max_context(self.model)
        return min(self._max_context, constant_rotation(self.model.config) or self._max_context)

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def lengths(self) -> Tensor:
        return self._cache.lengths

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values that are allocated."""
        return self._cache.num_bytes

    @contextmanager
    def session(self) -> Iterator[None]:
        """No gradients, no dropout, attention over slots, all weights at hand; afterwards all is as it was.

        Waits while another thread decodes. Raises RuntimeError inside a session of the same engine, whose cache it
        would overwrite.
        """
        with DECODING:
            if self._is_in_session:
                raise RuntimeError(
                    "this model is decoding already: generate cannot be called inside a generate of the same pair,"
                    " such as from its on_progress"
                )
            self._is_in_session = True
            if self.device.type == "cpu":
                yield_cores()
            try:
                with evaluating(self.model), gathered(self.model), self._in_slots(), torch.no_grad():
                    yield
            finally:
                self._is_in_session = False

    @contextmanager
    def _in_slots(self) -> Iterator[None]:
        attention = self.model.config._attn_implementation
        is_flash = attention == FLASH_ATTENTION and self.device.type == "cuda"
        self._attention_backend = "flash" if is_flash else "auto"
        try:
            self.model.config._attn_implementation = SLOT_ATTENTION
            yield
        finally:
            self._blocks = None
            self.model.config._attn_implementation = attention

    def allocate(self, num_slots: int, max_length: int) -> None:
        self._cache = SlotKVCache(num_slots, max_length, self.device, self._attention_backend)
        if self._has_blocks:
            self._blocks = Blocks(self.model, max_length)

    def truncate(self, slots: Tensor, lengths: Tensor) -> None:
        self._cache.truncate(slots, lengths)

    def copy_prefix(self, source: int, targets: Tensor, length: int) -> None:
        self._cache.copy_prefix(source, targets, length)

    def tighten(self, longest: int) -> None:
        self._cache.tighten(longest)

    def extend(self, slots: Tensor, token_ids: Tensor, num_new: Tensor) -> None:
        self._hidden(token_ids, slots, num_new)

    def step(self, token_ids: Tensor, is_active: Tensor, slots: Tensor | None = None) -> Tensor:
        with decode_threads(self._num_parameters) if self.device.type == "cpu" else nullcontext():
            return self._logits(token_ids[:, None], slots, is_active.long())

    @property
    def step_shape(self) -> int:
        return self._cache.columns_after(1)

    def count_step(self) -> None:
        self._cache.grow(1)

    def _logits(self, token_ids: Tensor, slots: Tensor | None, num_new: Tensor) -> Tensor:
        """Logits after the last of the new tokens, [N, V]."""
        if self._blocks is not None:
            return self._blocks.head(self._hidden(token_ids, slots, num_new)[:, -1])
        # The whole head of the model runs, whatever scales or caps it has.
        return self._forward(self.model, token_ids, slots, num_new).logits[:, -1]

    def _hidden(self, token_ids: Tensor, slots: Tensor | None, num_new: Tensor) -> Tensor:
        """Hidden states of the new tokens, [N, T, E]."""
        if self._blocks is None:
            return self._forward(self.model.get_decoder(), token_ids, slots, num_new).last_hidden_state
        positions = self._cache.begin(slots, num_new, token_ids.shape[1])
        return self._blocks.run(token_ids, positions, self._cache)

    def _forward(self, module: torch.nn.Module, token_ids: Tensor, slots: Tensor | None, num_new: Tensor) -> Any:
        """What `module`, the model with or without its head, makes of the new tokens."""
        cache, adapter = self._cache, _CacheAdapter(self._cache)
        positions = cache.begin(slots, num_new, token_ids.shape[1])
        reset = _CACHE.set(cache)
        try:
            outputs = module(input_ids=token_ids, position_ids=positions, past_key_values=adapter, use_cache=True)
        finally:
            _CACHE.reset(reset)
        if adapter.num_updates != cache.num_attended:
            raise ValueError(
                f"{type(self.model).__name__} does not attend through Transformers' attention interface in every layer,"
                " or is decoded outside a session; relay decoding cannot use it"
            )
        return outputs


class _CacheAdapter(Cache):
    """Stands for a slot cache as a model's `past_key_values`: the attention function does all the work."""

    def __init__(self, slots: SlotKVCache) -> None:
        super().__init__(layers=[])
        self._slot_cache = slots
        self.num_updates = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new keys and values as they are."""
        self.num_updates += 1
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self._slot_cache.longest


def _slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - what a slot holds says what may be seen
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """An attention function of Transformers: query [N, H, T, D], new key and value [N, K, T, D] -> [N, T, H, D].

    A value may be narrower than a key, and is then padded with zeros in the cache.
    """
    slot_cache = _CACHE.get()
    unknown = [name for name in NOT_PLAIN if extras.get(name) is not None]
    if sliding_window is not None and sliding_window < slot_cache.max_length:
        unknown.append(f"a sliding window of {sliding_window} tokens")
    if unknown:
        raise ValueError(f"{type(module).__name__} has {unknown[0]}; relay decoding needs plain attention")
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    value_size = value.shape[-1]
    if value_size < key.shape[-1]:  # multi-head latent attention; a zero more in a value changes no other number
        value = functional.pad(value, (0, key.shape[-1] - value_size))
    return slot_cache.attend(query, key, value, module.layer_idx, scaling)[..., :value_size], None


AttentionInterface.register(SLOT_ATTENTION, _slot_attention)
