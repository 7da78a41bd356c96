"""`norm_linear` at the sizes of Qwen3 and 1 to 16 rows: both calls of a layer.

Reading the weights decides: they are all that has to be moved.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

from relay_kernels import norm_linear
from relay_kernels.norm_linear.reference import norm_linear_reference
from torch import Tensor

from benchmarks.kernels.bars import Bar, ceiling_percent, speedup_over_fastest_rival
from benchmarks.kernels.case import Case, compiled
from benchmarks.kernels.gate import Check, judge
from benchmarks.kernels.target import Target

EPS = 1e-6
ROWS = (1, 4, 16)


@dataclass(frozen=True, slots=True)
class Sizes:
    """E hidden, Q all query heads, K all key heads, F inner size of the MLP."""

    hidden: int
    query: int
    key: int
    inner: int
    bar_percent: float
    """Of the weights' bytes at copy bandwidth: what a whole step of batch 1 must reach, so its best part too."""


MODELS = {
    "Qwen3-0.6B": Sizes(1024, 2048, 1024, 3072, 45),
    "Qwen3-1.7B": Sizes(2048, 2048, 1024, 6144, 60),
    "Qwen3-8B": Sizes(4096, 4096, 1024, 12288, 70),
}
SMALL = {"small": Sizes(128, 128, 64, 384, 0)}


@dataclass(frozen=True, slots=True)
class Layer:
    """Both calls of a layer, on the same states: N rows."""

    hidden: Tensor  # [N, E]
    residual: Tensor
    norm: Tensor  # [E]
    query: Tensor  # [Q, E]
    key: Tensor  # [K, E]
    value: Tensor
    gate: Tensor  # [F, E]
    up: Tensor


def draw(target: Target, sizes: Sizes, num_rows: int) -> Layer:
    shapes = [(size, sizes.hidden) for size in (sizes.query, sizes.key, sizes.key, sizes.inner, sizes.inner)]
    states = [target.normal(num_rows, sizes.hidden) for _ in range(2)]
    weights = [target.normal(*shape, scale=sizes.hidden**-0.5) for shape in shapes]
    return Layer(*states, target.normal(sizes.hidden), *weights)


def call(layer: Layer, backend: str) -> list[Tensor]:
    outputs, total = norm_linear(
        layer.hidden, layer.norm, EPS, [layer.query, layer.key, layer.value], None, layer.residual, backend=backend
    )
    [gated], _ = norm_linear(
        layer.hidden, layer.norm, EPS, [layer.gate, layer.up], None, layer.residual, is_gated=True, backend=backend
    )
    return [*outputs, total, gated]


def step_by_step(layer: Layer, backend: str = "reference") -> list[Tensor]:
    """The norm, PyTorch's linear layers (cuBLAS) and the gate; `backend` is that of the norm and of the gate."""
    hidden, norm, residual = layer.hidden, layer.norm, layer.residual
    weights = [layer.query, layer.key, layer.value]
    outputs, total = norm_linear_reference(hidden, norm, EPS, weights, [None] * 3, residual, False, backend=backend)
    weights = [layer.gate, layer.up]
    [gated], _ = norm_linear_reference(hidden, norm, EPS, weights, [None] * 2, residual, True, backend=backend)
    return [*outputs, total, gated]


def check(layer: Layer, backend: str) -> list[Check]:
    """Every output against that of the reference in fp64."""
    truths = step_by_step(Layer(*(getattr(layer, field.name).double() for field in fields(layer))))
    found = zip(
        ("query", "key", "value", "sum", "gated"), call(layer, backend), step_by_step(layer), truths, strict=True
    )
    return [judge(*result) for result in found]


def cases(target: Target) -> list[Case]:
    models = MODELS if target.is_full else SMALL
    return [case(target, name, sizes, num_rows) for name, sizes in models.items() for num_rows in ROWS]


def case(target: Target, name: str, sizes: Sizes, num_rows: int) -> Case:
    num_outputs = sizes.query + 2 * sizes.key + 2 * sizes.inner
    return Case(
        op="norm_linear",
        setting=f"a layer of {name}",
        shape={"N": num_rows, "E": sizes.hidden, "O": num_outputs},
        make_inputs=partial(draw, target, sizes, num_rows),
        ours=partial(call, backend=target.backend),
        check=partial(check, backend=target.backend),
        num_bytes=num_outputs * sizes.hidden * target.dtype.itemsize,
        bars=(
            Bar("times as fast as the fastest rival", speedup_over_fastest_rival, 1.0, is_upper=False),
            Bar("% of copy bandwidth", ceiling_percent, sizes.bar_percent, is_upper=False),
        ),
        rivals={
            "add_rms_norm, linear, silu_mul": partial(step_by_step, backend="auto"),
            "reference": step_by_step,
            "torch.compile": compiled(step_by_step),
        },
    )
