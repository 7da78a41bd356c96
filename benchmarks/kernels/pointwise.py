"""The pointwise ops of a decoder block at the sizes of Qwen3-8B: a step of 256 rows, and a chunk of 8,192 tokens.

Memory decides: everything is read once and written once. A step's tensors are so small that the launch shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from relay_kernels import add_rms_norm, rotate_heads, silu_mul
from relay_kernels.add_rms_norm.reference import add_rms_norm_reference
from relay_kernels.rotate_heads.reference import rotate_heads_reference
from relay_kernels.silu_mul.reference import silu_mul_reference
from torch import Tensor

from benchmarks.kernels.bars import Bar, speedup_over_fastest_rival
from benchmarks.kernels.case import Case, Work, compiled, is_importable
from benchmarks.kernels.gate import Check, judge
from benchmarks.kernels.target import Target

EPS = 1e-6
LIGER = "Liger"

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """N rows, T tokens; the rest is the model's: E hidden, F inner size of the MLP, H, K heads of size D."""

    num_rows: int
    num_tokens: int
    hidden: int = 4096
    inner: int = 12288
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128


@dataclass(frozen=True, slots=True)
class Pointwise:
    """An op over a tuple of inputs."""

    draw: Callable[[Target, Sizes], Inputs]
    call: Callable[..., Any]
    """The op; takes the inputs and `backend`."""
    reference: Work
    liger: Work
    shape: Callable[[Sizes], dict[str, int]]


def liger_add_rms_norm(inputs: Inputs) -> object:
    from liger_kernel.transformers.functional import liger_fused_add_rms_norm

    hidden, weight, residual = inputs
    return liger_fused_add_rms_norm(hidden, residual, weight, EPS, in_place=False)


def liger_rotate_heads(inputs: Inputs) -> object:
    """Norm of the heads, then the rotation: three launches."""
    from liger_kernel.transformers.functional import liger_rms_norm, liger_rope

    query, key, cosine, sine, *norms = inputs
    heads = (liger_rms_norm(x, w, EPS, in_place=False) for x, w in zip((query, key), norms, strict=True))
    return liger_rope(*(normed.transpose(1, 2) for normed in heads), cosine, sine)


def liger_silu_mul(inputs: Inputs) -> object:
    from liger_kernel.transformers.functional import liger_swiglu

    return liger_swiglu(*inputs)


def _draw_norm(target: Target, sizes: Sizes) -> Inputs:
    shape = (sizes.num_rows, sizes.num_tokens, sizes.hidden)
    return target.normal(*shape), target.normal(sizes.hidden), target.normal(*shape)


def _draw_heads(target: Target, sizes: Sizes) -> Inputs:
    rows, size = (sizes.num_rows, sizes.num_tokens), sizes.head_size
    angles = target.normal(*rows, size // 2, dtype=torch.float32).repeat(1, 1, 2)
    return (
        target.normal(*rows, sizes.num_heads, size),
        target.normal(*rows, sizes.num_kv_heads, size),
        angles.cos().to(target.dtype),
        angles.sin().to(target.dtype),
        target.normal(size),
        target.normal(size),
    )


def _draw_gate(target: Target, sizes: Sizes) -> Inputs:
    return tuple(target.normal(sizes.num_rows, sizes.num_tokens, sizes.inner) for _ in range(2))


OPS = {
    "add_rms_norm": Pointwise(
        draw=_draw_norm,
        call=lambda hidden, weight, residual, backend: add_rms_norm(hidden, weight, EPS, residual, backend=backend),
        reference=lambda inputs: add_rms_norm_reference(inputs[0], inputs[1], EPS, inputs[2]),
        liger=liger_add_rms_norm,
        shape=lambda sizes: {"E": sizes.hidden},
    ),
    "rotate_heads": Pointwise(
        draw=_draw_heads,
        call=lambda *inputs, backend: rotate_heads(*inputs, EPS, backend=backend),
        reference=lambda inputs: rotate_heads_reference(*inputs, EPS),
        liger=liger_rotate_heads,
        shape=lambda sizes: {"H": sizes.num_heads, "K": sizes.num_kv_heads, "D": sizes.head_size},
    ),
    "silu_mul": Pointwise(
        draw=_draw_gate,
        call=silu_mul,
        reference=lambda inputs: silu_mul_reference(*inputs),
        liger=liger_silu_mul,
        shape=lambda sizes: {"F": sizes.inner},
    ),
}


def check(inputs: Inputs, op: Pointwise, backend: str) -> list[Check]:
    """Every output against that of the reference in fp64."""
    truths = _tensors(op.reference(tuple(tensor.double() for tensor in inputs)))
    outputs, plains = _tensors(op.call(*inputs, backend=backend)), _tensors(op.reference(inputs))
    compared = enumerate(zip(outputs, plains, truths, strict=True))
    return [judge(f"output {index}", *tensors) for index, tensors in compared]


def cases(target: Target, op: str) -> list[Case]:
    """A step and a chunk of one of `OPS`."""
    if target.is_full:
        settings = {"a step": Sizes(256, 1), "a chunk": Sizes(8, 1024)}
    else:
        small = {"hidden": 128, "inner": 384, "num_heads": 4, "num_kv_heads": 2, "head_size": 32}
        settings = {"a step": Sizes(4, 1, **small), "a chunk": Sizes(2, 64, **small)}
    return [case(target, op, setting, sizes) for setting, sizes in settings.items()]


def case(target: Target, name: str, setting: str, sizes: Sizes) -> Case:
    op, has_liger = OPS[name], is_importable("liger_kernel")
    shapes = op.draw(Target(torch.device("meta"), "reference"), sizes)  # Tensors without storage.
    num_values = sum(tensor.numel() for tensor in (*shapes, *_tensors(op.reference(shapes))))
    return Case(
        op=name,
        setting=setting,
        shape={"N": sizes.num_rows, "T": sizes.num_tokens, **op.shape(sizes)},
        make_inputs=partial(op.draw, target, sizes),
        ours=lambda inputs: op.call(*inputs, backend=target.backend),
        check=partial(check, op=op, backend=target.backend),
        num_bytes=num_values * target.dtype.itemsize,
        bars=(Bar("times as fast as the fastest rival", speedup_over_fastest_rival, 1.0, is_upper=False),),
        rivals={
            "reference": op.reference,
            "torch.compile": compiled(op.reference),
            **({LIGER: op.liger} if has_liger else {}),
        },
        absent=() if has_liger else (LIGER,),
    )


def _tensors(outputs: Tensor | Iterable[Tensor]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
