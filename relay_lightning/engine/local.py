"""A Hugging Face decoder model in this process, run over a paged cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from relay_kernels import decode_attention
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, Cache, PreTrainedModel

from relay_lightning.engine.base import ForwardPass
from relay_lightning.engine.blocks import Blocks, can_run_blocks
from relay_lightning.engine.kv_cache import PagedKVCache, autocast_dtype
from relay_lightning.engine.turns import open_model
from relay_lightning.models.architecture import (
    check_supported,
    constant_rotation,
    eos_token_ids,
    max_context,
)
from relay_lightning.models.evaluating import evaluating
from relay_lightning.models.settings import FLASH_ATTENTION
from relay_lightning.models.sharding import gathered, is_sharded
from relay_lightning.threads import yield_cores

PAGED_ATTENTION = "relay_paged"
"""Name of the attention function that a model has during a session."""
NOT_PLAIN = ("softcap", "s_aux", "position_bias")
"""What models hand to an attention function that changes its result."""
MEASURED_BLOCK = 256
"""Tokens of the one block that is made to measure the size of keys and values; FlashAttention takes no smaller one."""
_CACHE: ContextVar[PagedKVCache] = ContextVar("_CACHE")
"""The cache of the forward pass in progress, for its attention function: not all models hand arguments on to it."""


class LocalModel:
    """`TokenModel` over the live weights of `model`, which may be in training; a PEFT model is used with its adapters.

    Works with any causal model whose layers attend through Transformers' attention interface: within a session their
    attention function is `relay_kernels.decode_attention` over blocks, and positions are given explicitly. Raises
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
        self._is_flash = causal_lm.config._attn_implementation == FLASH_ATTENTION  # A session changes it.
        self._max_context = max_context
        self._end_token_ids = tuple(end_token_ids)
        self._forward: tuple[tuple[int, ...], ForwardPass] | None = None
        """The last session's forward pass, and the addresses of the weights that it is made for."""
        self._kv_bytes: dict[torch.dtype | None, int] = {}

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
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def attention_backend(self) -> str:
        return "flash" if self._is_flash and self.device.type == "cuda" else "auto"

    def weights_version(self) -> int:
        parameters = (parameter for parameter in self.model.parameters() if not parameter.is_inference())
        return sum(parameter._version for parameter in parameters)

    def kv_bytes_per_token(self) -> int:
        """Returns the bytes of keys and values of one token, from a pass over a single token."""
        assert self._forward is not None
        key = autocast_dtype(self.device.type)
        if key not in self._kv_bytes:
            one = torch.ones(1, dtype=torch.int64, device=self.device)
            cache = PagedKVCache(1, MEASURED_BLOCK, 1, MEASURED_BLOCK, self.device, self.attention_backend)
            positions = cache.begin(None, one, 1, 1)
            self._forward[1].extend(torch.zeros_like(one)[:, None], positions, cache)
            self._kv_bytes[key] = cache.num_bytes // MEASURED_BLOCK
        return self._kv_bytes[key]

    @contextmanager
    def session(self) -> Iterator[ForwardPass]:
        """Opens the model: no dropout, attention over blocks, all weights at hand. The caller turns gradients off."""
        if self.device.type == "cpu":
            yield_cores()
        with open_model(self.model, self._prepared):
            addresses = tuple(parameter.data_ptr() for parameter in self.model.parameters())
            if self._forward is None or self._forward[0] != addresses:
                forward = Blocks(self.model, self.max_context) if self._has_blocks else _ModelPass(self.model)
                self._forward = (addresses, forward)
                self._kv_bytes = {}
            yield self._forward[1]

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        attention = self.model.config._attn_implementation
        with evaluating(self.model), gathered(self.model):
            try:
                self.model.config._attn_implementation = PAGED_ATTENTION
                yield
            finally:
                self.model.config._attn_implementation = attention
                if is_sharded(self.model):  # The gathered weights are gone.
                    self._forward = None


class _ModelPass:
    """`ForwardPass` through the model's own code."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def extend(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> Tensor:
        hidden: Tensor = self._run(self._model.get_decoder(), token_ids, positions, cache).last_hidden_state
        return hidden

    def step(self, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> tuple[Tensor, Tensor | None]:
        # The whole head of the model runs, whatever scales or caps it has.
        return self._run(self._model, token_ids, positions, cache).logits[:, -1], None

    def _run(self, module: torch.nn.Module, token_ids: Tensor, positions: Tensor, cache: PagedKVCache) -> Any:
        """Calls `module`, the model with or without its head."""
        adapter = _CacheAdapter(cache)
        reset = _CACHE.set(cache)
        try:
            outputs = module(input_ids=token_ids, position_ids=positions, past_key_values=adapter, use_cache=True)
        finally:
            _CACHE.reset(reset)
        if adapter.num_updates != cache.num_attended:
            raise ValueError(
                f"{type(self._model).__name__} does not attend through Transformers' attention interface in every"
                " layer, or is decoded outside a session; relay decoding cannot use it"
            )
        return outputs


class _CacheAdapter(Cache):
    """Stands for a paged cache as a model's `past_key_values`: the attention function does all the work."""

    def __init__(self, cache: PagedKVCache) -> None:
        super().__init__(layers=[])
        self._cache = cache
        self.num_updates = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns the new keys and values as they are."""
        self.num_updates += 1
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self._cache.longest


def _paged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - the lengths of the rows say what may be seen
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **extras: Any,
) -> tuple[Tensor, None]:
    """An attention function of Transformers: query [N, H, T, D], new key and value [N, K, T, D] -> [N, T, H, D].

    A value may be narrower than a key, and is then padded with zeros in the cache.
    """
    cache = _CACHE.get()
    unknown = [name for name in NOT_PLAIN if extras.get(name) is not None]
    if sliding_window is not None and sliding_window < cache.max_length:
        unknown.append(f"a sliding window of {sliding_window} tokens")
    if unknown:
        raise ValueError(f"{type(module).__name__} has {unknown[0]}; relay decoding needs plain attention")
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    value_size = value.shape[-1]
    if value_size < key.shape[-1]:  # multi-head latent attention; a zero more in a value changes no other number
        value = functional.pad(value, (0, key.shape[-1] - value_size))
    inputs = cache.attention_inputs(query, key, value, module.layer_idx)
    return decode_attention(**inputs, scale=scaling)[..., :value_size], None


AttentionInterface.register(PAGED_ATTENTION, _paged_attention)
