"""Log-probability and entropy of a linear head in plain PyTorch: the definition, and the CPU path of training.

Shapes: T tokens, V vocabulary, D hidden, C tokens of a chunk. Inputs may be bf16, fp16, fp32 or fp64; all inside is at
least fp32. With z = (h W^T + b) / temperature and p = softmax(z):

    log_prob = z_target - logsumexp(z)              entropy = -sum_j p_j log p_j
    d log_prob / d z_j = 1[j = target] - p_j        d entropy / d z_j = -p_j (log p_j + entropy)
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 25
"""Logits of a chunk: 128 MiB in fp32, 220 tokens of a vocabulary of 151,936, so that reading the head is worth it."""

LOG_ZERO = -1e30
"""Stands in for log 0: its product with a probability of 0 is 0, where -inf would give NaN."""


def linear_log_probs_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(log_probs [T], entropy [T]) in fp32 (fp64 for fp64 inputs), differentiable in hidden, weight and bias."""
    result: tuple[Tensor, Tensor] = _LinearLogProbs.apply(hidden, weight, targets, bias, temperature)  # type: ignore[no-untyped-call]
    return result


def linear_log_probs_naive(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The same by automatic differentiation over all [T, V] logits at once: what tests and benchmarks compare with."""
    dtype = _compute_dtype(hidden, weight)
    logits = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        logits = logits + bias.to(dtype)
    log_probs = torch.log_softmax(logits / temperature, dim=-1)  # [T, V]
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
    return log_probs.gather(1, targets.unsqueeze(1)).squeeze(1), entropy


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(hidden.dtype, weight.dtype), torch.float32)


def _without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Keeps mixed precision from lowering the products in here."""
    return torch.autocast(tensor.device.type, enabled=False)


def _chunks(num_tokens: int, vocab_size: int) -> list[slice]:
    size = max(1, CHUNK_ELEMENTS // max(1, vocab_size))
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


def _scaled_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """z of a chunk, [C, V], a new tensor; all arguments share one dtype."""
    logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    return logits if temperature == 1.0 else logits.div_(temperature)


class _LinearLogProbs(torch.autograd.Function):
    """Keeps two numbers per token for the backward pass and computes the logits of a chunk again there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float
    ) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(hidden, weight)
        log_probs = torch.empty(hidden.shape[0], dtype=dtype, device=hidden.device)
        entropy, row_max, log_normaliser = (torch.empty_like(log_probs) for _ in range(3))
        wide_weight, wide_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        with _without_autocast(hidden):
            for chunk in _chunks(hidden.shape[0], weight.shape[0]):
                z = _scaled_logits(hidden[chunk].to(dtype), wide_weight, wide_bias, temperature)  # [C, V]
                row_max[chunk] = z.amax(dim=1)
                z -= row_max[chunk].unsqueeze(1)
                log_probs[chunk] = z.gather(1, targets[chunk].unsqueeze(1)).squeeze(1)
                exp_z = z.exp()
                normaliser = exp_z.sum(dim=1)
                log_normaliser[chunk] = normaliser.log()
                entropy[chunk] = log_normaliser[chunk] - exp_z.mul_(z.clamp_(min=LOG_ZERO)).sum(dim=1) / normaliser
        log_probs -= log_normaliser
        ctx.save_for_backward(hidden, weight, targets, bias, row_max, log_normaliser, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, bias, row_max, log_normaliser, entropy = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias, _ = ctx.needs_input_grad
        dtype = _compute_dtype(hidden, weight)
        wide_weight, wide_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(wide_weight) if needs_weight else None
        grad_bias = torch.zeros_like(wide_weight[:, 0]) if needs_bias else None
        with _without_autocast(hidden):
            for chunk in _chunks(hidden.shape[0], weight.shape[0]):
                wide_hidden = hidden[chunk].to(dtype)
                z = _scaled_logits(wide_hidden, wide_weight, wide_bias, ctx.temperature)
                z -= row_max[chunk].unsqueeze(1)
                z -= log_normaliser[chunk].unsqueeze(1)  # log p, [C, V]
                grad_z = _logit_gradient(
                    z,
                    targets[chunk],
                    entropy[chunk],
                    None if grad_log_probs is None else grad_log_probs[chunk],
                    None if grad_entropy is None else grad_entropy[chunk],
                ).div_(ctx.temperature)
                if grad_hidden is not None:
                    grad_hidden[chunk] = (grad_z @ wide_weight).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight.addmm_(grad_z.T, wide_hidden)
                if grad_bias is not None:
                    grad_bias += grad_z.sum(dim=0)
        narrow_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        narrow_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_hidden, narrow_weight, None, narrow_bias, None


def _logit_gradient(
    all_log_probs: Tensor, targets: Tensor, entropy: Tensor, grad_log_probs: Tensor | None, grad_entropy: Tensor | None
) -> Tensor:
    """Gradient of the loss in z, [C, V], from log p [C, V], which it uses up; every row sums to zero."""
    probs = all_log_probs.exp()
    if grad_entropy is None:
        if grad_log_probs is None:
            return probs.zero_()
        grad = probs.mul_(-grad_log_probs.unsqueeze(1))
    else:
        grad = all_log_probs.clamp_(min=LOG_ZERO).add_(entropy.unsqueeze(1))
        grad.mul_(-grad_entropy.unsqueeze(1))
        if grad_log_probs is not None:
            grad -= grad_log_probs.unsqueeze(1)
        grad.mul_(probs)
    if grad_log_probs is not None:
        grad.scatter_add_(1, targets.unsqueeze(1), grad_log_probs.unsqueeze(1))
    return grad
