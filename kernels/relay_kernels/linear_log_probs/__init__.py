"""`linear_log_probs`: hidden states x LM head -> log-probability of the target and entropy. Maths: README.md."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from relay_kernels.backends import TRITON_DTYPES, choose_backend
from relay_kernels.linear_log_probs.reference import linear_log_probs_reference


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(log_probs [T], entropy [T]) of softmax((hidden weight^T + bias) / temperature), natural log, fp32.

    hidden [T, D] and weight [V, D] in bf16, fp16, fp32 or fp64 (fp64 gives fp64), targets [T] integers in [0, V),
    bias [V]. Differentiable in hidden, weight and bias through both outputs. Never holds [T, V].
    The Triton backend multiplies factors of the dtype of hidden and casts a weight of another one to it.
    Raises ValueError naming the argument for a wrong shape, type or value, RuntimeError for a backend that cannot run.
    While a CUDA graph is captured no value can be looked at: a target outside the vocabulary then gives NaN in Triton.
    """
    _check(hidden, weight, targets, bias, temperature)
    why_not = None if hidden.dtype in TRITON_DTYPES else f"its dtypes do not include {hidden.dtype}, that of hidden"
    if choose_backend("linear_log_probs", backend, hidden.device, why_not=why_not) == "triton":
        from relay_kernels.linear_log_probs.triton_impl import linear_log_probs_triton

        return linear_log_probs_triton(hidden, weight, targets, bias, temperature)
    return linear_log_probs_reference(hidden, weight, targets.long(), bias, temperature)


def _check(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, temperature: float) -> None:
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor; got {tensor.dtype}.")
    for name, tensor in (("weight", weight), ("targets", targets), ("bias", bias)):
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name} must be on {hidden.device}, where hidden is; it is on {tensor.device}.")
    if hidden.ndim != 2:
        raise ValueError(f"hidden must have the shape [T, D]; got {list(hidden.shape)}.")
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1] or weight.shape[0] == 0:
        raise ValueError(f"weight must have the shape [V, {hidden.shape[1]}] with V > 0; got {list(weight.shape)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have the shape [{weight.shape[0]}]; got {list(bias.shape)}.")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must have the shape [{hidden.shape[0]}]; got {list(targets.shape)}.")
    if targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"targets must be int64 or int32; got {targets.dtype}.")
    if not (temperature > 0.0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be positive and finite; got {temperature}.")
    if targets.numel() > 0 and _can_look_at(targets):
        low, high = (int(bound) for bound in torch.aminmax(targets))
        if low < 0 or high >= weight.shape[0]:
            raise ValueError(f"targets must lie in [0, {weight.shape[0]}); got values from {low} to {high}.")


def _can_look_at(tensor: Tensor) -> bool:
    """Whether its values can be read. On a CUDA device the host waits for them, once among milliseconds of work."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    return not (tensor.is_cuda and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing())
