"""From losses per token to the loss of a micro-batch, so that the parts of an optimiser step add up exactly.

Lightning divides each of the M micro-batch losses of an optimiser step by `accumulate_grad_batches`, and ddp averages
the gradients of its ranks; with M = accumulate_grad_batches * world size the step's gradient is that of
(1 / M) * sum of the micro-batch losses. So each micro-batch returns M times its share of the whole step's loss.
"""

from __future__ import annotations

from typing import Literal

import torch

LossType = Literal["grpo", "dapo", "bnpo", "dr_grpo", "cispo"]
LOSS_TYPES = ("grpo", "dapo", "bnpo", "dr_grpo", "cispo")


def aggregate(
    per_token_loss: torch.Tensor,
    loss_mask: torch.Tensor,
    loss_type: LossType,
    *,
    num_step_loss_tokens: torch.Tensor,
    num_step_rollouts: torch.Tensor,
    max_completion_tokens: int | None,
    num_micro_batches: int,
) -> torch.Tensor:
    """The scalar loss of per_token_loss [B, T] under loss_mask [B, T]. L_i counts row i's loss tokens; B and N
    count completions and loss tokens of the whole optimiser step on all ranks:

    grpo: (M / B) sum_i (1 / L_i) sum_t        dr_grpo: M / (B * max_completion_tokens) sum
    dapo, cispo: (M / N) sum                   bnpo: sum / loss tokens of this micro-batch, whatever M
    """
    masked = torch.where(loss_mask, per_token_loss, 0.0)
    if loss_type == "bnpo":
        return masked.sum() / loss_mask.sum().clamp(min=1)
    if loss_type == "grpo":
        row_means = masked.sum(dim=1) / loss_mask.sum(dim=1).clamp(min=1)
        share = row_means.sum() / num_step_rollouts.clamp(min=1)
    elif loss_type == "dr_grpo":
        if max_completion_tokens is None:
            raise ValueError("max_completion_tokens is needed by loss_type 'dr_grpo', which divides by it; got None.")
        share = masked.sum() / (num_step_rollouts.clamp(min=1) * max_completion_tokens)
    else:
        share = masked.sum() / num_step_loss_tokens.clamp(min=1)
    return num_micro_batches * share
