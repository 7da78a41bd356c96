"""`linear_log_probs` at 8,192 tokens, D 2,048 and a vocabulary of 151,936: forward, and forward with backward.

Liger's fused linear loss gives the sum of the log-probabilities alone, no entropy. An exact backward without [T, V] in
memory has four products: the logits, the logits again, and the gradients of the hidden states and of the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from relay_kernels import linear_log_probs
from torch import Tensor

from benchmarks.kernels.bars import Bar, extra_mib, memory_times, speedup, times
from benchmarks.kernels.case import Case, Work, compiled, is_importable
from benchmarks.kernels.gate import Check, judge
from benchmarks.kernels.target import Target

LIGER = "Liger"
GEMM, GEMMS = "bare GEMM", "4 bare GEMMs"

Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""(hidden, weight, targets) -> tensors that a loss is made of."""


@dataclass(frozen=True, slots=True)
class Projection:
    """T tokens, V vocabulary, D hidden; and what comes back from the loss."""

    hidden: Tensor  # [T, D]
    weight: Tensor  # [V, D]
    targets: Tensor  # [T]
    grad_log_probs: Tensor  # [T] fp32
    grad_entropy: Tensor  # [T] fp32


def draw(target: Target, shape: dict[str, int]) -> Projection:
    """Logits of unit deviation."""
    num_tokens, dim, vocab_size = shape.values()
    return Projection(
        hidden=target.normal(num_tokens, dim),
        weight=target.normal(vocab_size, dim, scale=dim**-0.5),
        targets=target.integers(0, vocab_size, num_tokens),
        grad_log_probs=target.normal(num_tokens, dtype=torch.float32),
        grad_entropy=target.normal(num_tokens, dtype=torch.float32),
    )


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """As one writes it first: the logits at the dtype of the inputs, their softmax in fp32."""
    log_probs = torch.log_softmax((hidden @ weight.T).float(), dim=-1)  # [T, V]
    entropy = torch.special.entr(log_probs.exp()).sum(-1)
    return log_probs.gather(1, targets[:, None])[:, 0], entropy


def forward(inputs: Projection, head: Head) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return head(inputs.hidden, inputs.weight, inputs.targets)


def forward_backward(inputs: Projection, head: Head) -> tuple[Tensor, ...]:
    """Outputs, then the gradients of hidden and weight."""
    leaves = [inputs.hidden.detach().requires_grad_(), inputs.weight.detach().requires_grad_()]
    outputs = head(*leaves, inputs.targets)
    incoming = [grad.to(output.dtype) for output, grad in zip(outputs, _incoming(inputs, outputs), strict=True)]
    return (*(output.detach() for output in outputs), *torch.autograd.grad(outputs, leaves, incoming))


def _incoming(inputs: Projection, outputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The loss's gradients of the outputs: those of the inputs, or one for a loss."""
    if len(outputs) == 1:
        return [torch.ones_like(outputs[0])]
    return [inputs.grad_log_probs, inputs.grad_entropy]


def products(inputs: Projection, num_products: int) -> None:
    """The bare matrix products: the logits once, or all four."""
    logits = inputs.hidden @ inputs.weight.T
    if num_products > 1:
        logits = inputs.hidden @ inputs.weight.T
        logits @ inputs.weight
        logits.T @ inputs.hidden


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor]:
    """Liger's fused linear cross-entropy, summed."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    return (LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets),)


def check(inputs: Projection, head: Head, run: Callable[[Projection, Head], tuple[Tensor, ...]]) -> list[Check]:
    """Values and gradients against the reference in fp64; the head's rows of targets and all others apart.

    A probability inherits the rounding of its logarithm, which is some -log V.
    """
    wide = Projection(
        inputs.hidden.double(), inputs.weight.double(), inputs.targets, inputs.grad_log_probs, inputs.grad_entropy
    )
    truth = run(wide, partial(linear_log_probs, backend="reference"))
    found = list(zip(run(inputs, head), run(inputs, plain), truth, strict=True))
    is_target = torch.zeros(inputs.weight.shape[0], dtype=torch.bool, device=inputs.weight.device)
    is_target[inputs.targets] = True
    named = dict(zip(("log_probs", "entropy", "grad_hidden"), found, strict=False))
    if len(found) > len(named):
        for name, rows in (("grad_weight of targets", is_target), ("grad_weight of others", ~is_target)):
            named[name] = tuple(values[rows] for values in found[-1])
    log_rounding = math.log(inputs.weight.shape[0]) * torch.finfo(torch.float32).eps

    def floor(values: Tensor, exact: Tensor) -> float:
        return (torch.finfo(values.dtype).eps + log_rounding) * float(exact.abs().max())

    return [judge(name, ours, plains, exact, floor=floor(ours, exact)) for name, (ours, plains, exact) in named.items()]


def cases(target: Target) -> list[Case]:
    sizes = (8192, 2048, 151_936) if target.is_full else (64, 64, 1000)
    shape = dict(zip(("T", "D", "V"), sizes, strict=True))
    forward_bars = (Bar("times the bare GEMM", times(GEMM), 1.25, 1.1), Bar("extra MiB", extra_mib, 256))
    both_bars = (
        Bar("times the 4 bare GEMMs", times(GEMMS), 1.5, 1.2),
        Bar("extra MiB, gradients included", extra_mib, 1024),
        Bar("times as fast as Liger", speedup(LIGER), 1.0, is_upper=False),
        Bar("times Liger's extra memory", memory_times(LIGER), 1.0),
    )
    return [
        case(target, shape, "forward", forward, GEMM, 1, forward_bars),
        case(target, shape, "forward and backward", forward_backward, GEMMS, 4, both_bars),
    ]


def case(
    target: Target,
    shape: dict[str, int],
    setting: str,
    run: Callable[[Projection, Head], tuple[Tensor, ...]],
    yardstick: str,
    num_products: int,
    bars: tuple[Bar, ...],
) -> Case:
    """One direction. Milliseconds of work, so that what a launch costs does not show and no graph is needed."""
    num_tokens, dim, vocab_size = shape.values()
    head = partial(linear_log_probs, backend=target.backend)
    has_liger = is_importable("liger_kernel")
    heads: dict[str, Head] = {
        "reference": partial(linear_log_probs, backend="reference"),
        "plain PyTorch": plain,
        "torch.compile": compiled(plain),
        **({LIGER: liger} if has_liger else {}),
    }
    rivals: dict[str, Work] = {name: partial(run, head=rival) for name, rival in heads.items()}
    num_moved = num_tokens * dim + vocab_size * dim
    return Case(
        op="linear_log_probs",
        setting=setting,
        shape=shape,
        make_inputs=lambda: draw(target, shape),
        ours=partial(run, head=head),
        check=partial(check, head=head, run=run),
        num_bytes=(num_moved * (2 if num_products > 1 else 1)) * target.dtype.itemsize,
        bars=bars,
        rivals=rivals,
        yardsticks={yardstick: partial(products, num_products=num_products)},
        absent=() if has_liger else (LIGER,),
        ceiling=yardstick,
        num_flops=num_products * 2 * num_tokens * dim * vocab_size,
        is_graphed=False,
    )
