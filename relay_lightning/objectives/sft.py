"""The supervised objective of the warm-up."""

from __future__ import annotations

import torch


def sft_loss(
    log_probs: torch.Tensor, loss_mask: torch.Tensor, num_tokens: torch.Tensor | float, num_micro_batches: int = 1
) -> torch.Tensor:
    """Cross-entropy per token: -(M / num_tokens) * sum of log_probs over loss_mask, a scalar.

    log_probs [B, T] natural log, loss_mask [B, T] bool. `num_tokens` counts the loss tokens of the whole optimiser
    step on all ranks; M = `num_micro_batches` undoes the averaging of Lightning and ddp (docs/numerics.md).
    """
    log_probs = log_probs.masked_fill(~loss_mask, 0.0)
    return -log_probs.sum() * num_micro_batches / torch.as_tensor(num_tokens).clamp(min=1)
