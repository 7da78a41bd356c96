"""Passes of a local model over rows with KV blocks of their own, without a relay."""

from __future__ import annotations

import torch
from torch import Tensor

from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.local import LocalModel


def logits_behind(model: LocalModel, token_ids: Tensor, chunk: Tensor | None = None) -> Tensor:
    """Returns the logits after token_ids [N, T], read one at a time behind a chunk [N, C] if there is one: [N, V]."""
    width = 0 if chunk is None else chunk.shape[1]
    num_rows, num_tokens = token_ids.shape
    cache = PagedKVCache.with_own_blocks(num_rows, width + num_tokens, model.device)
    with torch.no_grad(), model.session() as forward:
        if chunk is not None:
            positions = cache.begin(None, torch.full((num_rows,), width), width, width)
            forward.extend(chunk, positions, cache)
        for step in range(num_tokens):
            positions = cache.begin(None, torch.ones(num_rows, dtype=torch.int64), 1, width + step + 1)
            logits, _ = forward.step(token_ids[:, step : step + 1], positions, cache)
    return logits.clone()
