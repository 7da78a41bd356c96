"""A Hugging Face decoder model in this process as a token engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from relay_lightning.engine.kv_cache import SlotKVCache
from relay_lightning.models.architecture import check_supported, eos_token_ids, max_context
from relay_lightning.models.settings import FLASH_ATTENTION


class LocalEngine:
    """`TokenEngine` over the live weights of `model`, which may be in training; a PEFT model is used with its adapters.

    Works with any causal model with plain attention ("sdpa" or "eager"): keys and values live in slots, positions and
    the 4-dimensional attention mask are given explicitly. Raises ValueError for a model that cannot be run so.
    """

    def __init__(self, model: torch.nn.Module, *, max_context: int | None = None) -> None:
        causal_lm = model.get_base_model() if hasattr(model, "get_base_model") else model
        check_supported(causal_lm)
        self.model: PreTrainedModel = causal_lm
        self._max_context = max_context
        self._cache = SlotKVCache(0, 0, self.device)

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return eos_token_ids(self.model)

    @property
    def max_context(self) -> int:
        return max_context(self.model) if self._max_context is None else self._max_context

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
        """No gradients, no dropout; afterwards each submodule is as it was, in training or not.

        A model that trains with FlashAttention decodes on sdpa, which takes the masks of slots.
        """
        attention = self.model.config._attn_implementation
        if attention == FLASH_ATTENTION:
            self.model.config._attn_implementation = "sdpa"
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.config._attn_implementation = attention
            for module in training:
                module.training = True

    def allocate(self, num_slots: int, max_length: int) -> None:
        self._cache = SlotKVCache(num_slots, max_length, self.device)

    def truncate(self, slots: Tensor, lengths: Tensor) -> None:
        self._cache.truncate(slots, lengths)

    def copy_prefix(self, source: int, targets: Tensor, length: int) -> None:
        self._cache.copy_prefix(source, targets, length)

    def tighten(self, longest: int) -> None:
        self._cache.tighten(longest)

    def extend(self, slots: Tensor, token_ids: Tensor, num_new: Tensor) -> None:
        self._forward(token_ids, slots, num_new)

    def step(self, token_ids: Tensor, is_active: Tensor, slots: Tensor | None = None) -> Tensor:
        return self._forward(token_ids[:, None], slots, is_active.long())[:, -1]

    def _forward(self, token_ids: Tensor, slots: Tensor | None, num_new: Tensor) -> Tensor:
        """Logits after the last column, [N, 1, V]: the whole head of the model runs, whatever scales or caps it has."""
        positions, mask = self._cache.begin(slots, num_new, token_ids.shape[1])
        if self.model.config._attn_implementation == "eager":
            dtype = self.model.get_input_embeddings().weight.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
        outputs = self.model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=_CacheAdapter(self._cache),
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits


class _CacheAdapter(Cache):
    """Gives a slot cache to a model as its `past_key_values`."""

    def __init__(self, slots: SlotKVCache) -> None:
        super().__init__(layers=[])
        self._slot_cache = slots

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._slot_cache.update(key_states, value_states, layer_idx)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        return self._slot_cache.longest
