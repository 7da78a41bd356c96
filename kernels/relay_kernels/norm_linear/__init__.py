"""The RMS norm of a decoder block and the linear layers behind it, gated or side by side. Maths: README.md."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from relay_kernels.backends import choose_backend_for
from relay_kernels.norm_linear.reference import MAX_WEIGHTS, check_norm_linear, is_under_autocast, norm_linear_reference

WEIGHTS, BIASES = (tuple(f"{name}[{index}]" for index in range(MAX_WEIGHTS)) for name in ("weights", "biases"))
MAX_ROWS = 16
"""Rows of the Triton kernel's tile, as many as a tensor core multiplies at once."""
SIZE_STEP = 16
"""What divides D, so that every row of a weight can be copied 16 bytes at a time."""


def norm_linear(
    hidden: Tensor,
    norm_weight: Tensor,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    residual: Tensor | None = None,
    *,
    is_gated: bool = False,
    backend: str = "auto",
) -> tuple[tuple[Tensor, ...], Tensor]:
    """(outputs, sum): sum = hidden + residual, outputs[i] = rms_norm(sum) @ weights[i]^T + biases[i]. No gradient.

    hidden, residual: [..., D] float; norm_weight: [D]; weights: one to three of [O_i, D]; biases: as many of [O_i] or
    None, or None for all. With `is_gated` there are two weights, gate and up, and one output, silu(gate) * up. Without
    a residual `sum` is `hidden` itself. Triton takes up to MAX_ROWS rows of one dtype outside autocast; else, and on a
    CPU, the norm, the linear layers and the gate run one after the other. Raises ValueError that names the argument.
    """
    biases = [None] * len(weights) if biases is None else biases
    check_norm_linear(hidden, norm_weight, eps, weights, biases, residual, is_gated)
    tensors = (norm_weight, residual, *weights, *biases)
    why_not = _why_not_triton(hidden, weights, biases)
    names = ("hidden", "norm_weight", "residual", *WEIGHTS[: len(weights)], *BIASES[: len(weights)])
    chosen = choose_backend_for("norm_linear", backend, hidden, *tensors, names=names, why_not=why_not)
    arguments = (hidden, norm_weight, eps, weights, biases, residual, is_gated)
    if chosen == "triton":
        from relay_kernels.norm_linear.triton_impl import norm_linear_triton

        return norm_linear_triton(*arguments)
    return norm_linear_reference(*arguments, backend=backend)


def _why_not_triton(hidden: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> str | None:
    num_rows = hidden.shape[:-1].numel()
    if num_rows > MAX_ROWS:
        return f"it takes up to {MAX_ROWS} rows, not {num_rows}"
    if hidden.shape[-1] % SIZE_STEP:
        return f"its D is a multiple of {SIZE_STEP}, not {hidden.shape[-1]}"
    if not all(weight.is_contiguous() for weight in weights):
        return "its weights are contiguous"
    if len({bias is None for bias in biases}) > 1:
        return "its layers have a bias all of them or none"
    if is_under_autocast(hidden):
        return "autocast has a dtype of its own for linear layers"
    return None
