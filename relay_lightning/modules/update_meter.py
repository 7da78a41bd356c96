"""UpdateMeter: seconds, throughput and memory of the training passes of an optimiser step, rollouts apart.

Shapes: B rows, T tokens of a row, padding included, N tokens that are trained on.
"""

from __future__ import annotations

import time

import torch

from relay_lightning.modules.flops import PassFlops
from relay_lightning.modules.peak_flops import peak_flops_per_s
from relay_lightning.modules.phases import wait_for_device

GB = 1e9


class UpdateMeter:
    """Adds up the micro-batches of an optimiser step of this process."""

    def __init__(self, flops: PassFlops, device: torch.device, dtype: torch.dtype) -> None:
        """dtype: of the matrix products; it decides what the device could do at most."""
        self._flops = flops
        self._device = device
        self._peak_flops_per_s = peak_flops_per_s(device, dtype)
        self._started_s = 0.0
        self._restart()

    def start(self, num_rows: int, num_tokens: int, num_loss_tokens: int) -> None:
        """A training pass over B x T tokens begins, N of them trained on."""
        self._num_tokens += num_rows * num_tokens
        self._num_flops += self._flops.of(num_rows, num_tokens, num_loss_tokens)
        self._started_s = time.perf_counter()

    def stop(self, *, is_step_complete: bool) -> dict[str, float]:
        """The pass is over, with its backward pass and, if it completes one, its optimiser step: the figures of that.

        On a GPU also the highest memory that PyTorch held since the last ones.
        """
        if is_step_complete:
            wait_for_device(self._device)
        self._seconds += time.perf_counter() - self._started_s
        if not is_step_complete:
            return {}
        flops_per_s = self._num_flops / self._seconds
        figures = {
            "time/update_s": self._seconds,
            "throughput/update_tokens_per_s": self._num_tokens / self._seconds,
            "throughput/update_flops_per_s": flops_per_s,
        }
        if self._peak_flops_per_s is not None:
            figures["throughput/mfu"] = flops_per_s / self._peak_flops_per_s
        if self._device.type == "cuda":
            figures["memory/peak_gb"] = torch.cuda.max_memory_allocated(self._device) / GB
            torch.cuda.reset_peak_memory_stats(self._device)
        self._restart()
        return figures

    def _restart(self) -> None:
        self._seconds, self._num_tokens, self._num_flops = 0.0, 0, 0
