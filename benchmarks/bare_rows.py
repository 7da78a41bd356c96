"""Decoding with nothing but a model: what the relay's loop is compared with. Shapes: N rows, T tokens, V vocabulary."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from relay_lightning.engine.base import ForwardPass
from relay_lightning.engine.cuda_graphs import CudaCapture, StepGraphs
from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.local import LocalModel
from relay_lightning.threads import decode_threads


class BareRows:
    """N rows of up to `max_length` tokens, each with KV blocks of its own; they start and end together."""

    def __init__(self, model: LocalModel, num_rows: int, max_length: int, *, cuda_graphs: bool = False) -> None:
        """cuda_graphs: on a GPU, capture decode steps."""
        device = model.device
        self.cache = PagedKVCache.with_own_blocks(num_rows, max_length, device, model.attention_backend)
        self._num_parameters = model.num_parameters
        self._one_each = torch.ones(num_rows, dtype=torch.int64, device=device)
        has_graphs = cuda_graphs and device.type == "cuda"
        self._graphs = StepGraphs(CudaCapture(device), num_rows, device) if has_graphs else None
        self._longest = 0

    def reset(self, length: int = 0) -> None:
        """Makes every row `length` tokens long, whatever the cache holds."""
        self.cache.lengths.fill_(length)
        self._longest = length

    @torch.no_grad()
    def extend(self, forward: ForwardPass, token_ids: Tensor, num_new: Tensor | None = None) -> None:
        """Reads token_ids [N, T], of which the first num_new[i] of row i are real; None: all."""
        width = token_ids.shape[1]
        self._longest += width
        positions = self.cache.begin(None, self._one_each * width if num_new is None else num_new, width, self._longest)
        forward.extend(token_ids, positions, self.cache)

    @torch.no_grad()
    def decode(self, forward: ForwardPass, token: Tensor, num_steps: int) -> Tensor:
        """Returns the greedy tokens behind `token` [N], [N, num_steps]; the last one is left in `token`."""
        written = token.new_empty(len(token), num_steps)

        def step() -> None:
            positions = self.cache.begin(None, self._one_each, 1, self._longest)
            token.copy_(forward.step(token[:, None], positions, self.cache)[0].argmax(-1))

        with nullcontext() if token.is_cuda else decode_threads(self._num_parameters):
            for index in range(num_steps):
                self._longest += 1
                if self._graphs is None:
                    step()
                else:
                    self._graphs.run(self.cache.columns_of(self._longest), step)
                written[:, index] = token
        return written
