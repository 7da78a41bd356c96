"""Bytes of weights, and of what a training step keeps beside each trained one."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from relay_lightning.models.skeleton import ModelPlan, build_skeleton

NF4_BLOCK = 64
"""Weights that share a scale of 8 bits."""
NF4_SCALES_BLOCK = 256
"""Scales that share a scale of 32 bits."""
NF4_TABLE_BYTES = 4 * (16 + 256 + 1)
"""Of each layer: the 16 values of NF4, the 256 of a scale, the scales' mean."""
NUM_PROBE_ROWS = 512
"""Larger weights are probed with so many rows and half as many; their state grows with the rows."""

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Weights:
    """What the weights of one model come to."""

    num_parameters: int
    num_bytes: int
    shapes: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    """Of each trained weight."""
    largest_dequantized_bytes: int
    """Of one quantised layer while it is computed with; 0 without quantisation."""

    @property
    def num_trained(self) -> int:
        return sum(math.prod(shape) for shape, _ in self.shapes)

    @property
    def trained_bytes(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.shapes)


@lru_cache
def plan_weights(plan: ModelPlan) -> Weights:
    """Of the whole model, adapters included, tied weights once."""
    model = build_skeleton(plan)
    quantized = _quantized_weights(model) if plan.loading.quantization == "nf4" else {}
    parameters = list(model.parameters())
    return Weights(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_bytes=sum(
            nf4_bytes(parameter.numel()) if id(parameter) in quantized else parameter.numel() * parameter.itemsize
            for parameter in parameters
        ),
        shapes=tuple((tuple(weight.shape), weight.dtype) for weight in parameters if weight.requires_grad),
        largest_dequantized_bytes=max((weight.numel() * weight.itemsize for weight in quantized.values()), default=0),
    )


def nf4_bytes(num_weights: int) -> int:
    """Of one quantised layer: half a byte a weight, its scales, and their scales."""
    num_scales = -(-num_weights // NF4_BLOCK)
    return -(-num_weights // 2) + num_scales + 4 * -(-num_scales // NF4_SCALES_BLOCK) + NF4_TABLE_BYTES


@lru_cache
def optimizer_bytes(make_optimizer: OptimizerFactory, weights: Weights) -> int:
    """Of the state that the optimiser keeps, found by letting it step on small weights of the same shapes."""
    shared, total = 0, 0
    for (shape, dtype), count in Counter(weights.shapes).items():
        own, shared_here = _probe(make_optimizer, shape, dtype)
        total += count * own
        shared = max(shared, shared_here)
    return total + shared


def optimizer_workspace_bytes(make_optimizer: OptimizerFactory, weights: Weights, device_type: str) -> int:
    """Of what one optimiser step makes and drops: PyTorch's foreach loops, the default on a GPU, copy all weights."""
    (group, *_) = make_optimizer([nn.Parameter(torch.zeros(1))]).param_groups
    is_foreach = "foreach" in group and not group.get("fused") and group["foreach"] is not False
    return weights.trained_bytes if is_foreach and (device_type == "cuda" or group["foreach"]) else 0


def _quantized_weights(model: Any) -> dict[int, nn.Parameter]:
    head = model.get_output_embeddings()
    return {
        id(module.weight): module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and "lora_" not in name
    }


def _probe(make_optimizer: OptimizerFactory, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of state that a weight of this shape adds, and bytes that weights of this kind share."""
    if len(shape) < 2 or shape[0] <= NUM_PROBE_ROWS:
        one, two = (_state_bytes(make_optimizer, [shape] * count, dtype) for count in (1, 2))
        return two - one, 2 * one - two
    most, shared = _probe(make_optimizer, (NUM_PROBE_ROWS, *shape[1:]), dtype)
    half, _ = _probe(make_optimizer, (NUM_PROBE_ROWS // 2, *shape[1:]), dtype)
    return most + (most - half) * (shape[0] - NUM_PROBE_ROWS) // (NUM_PROBE_ROWS // 2), shared


def _state_bytes(make_optimizer: OptimizerFactory, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> int:
    """Bytes of the tensors in the optimiser's state after one step on real weights of these shapes."""
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(parameters)
    with warnings.catch_warnings(action="ignore"):  # paged optimisers say that they do not page on a CPU
        optimizer.step()
    return storage_bytes(value for state in optimizer.state.values() for value in state.values())


def storage_bytes(values: Iterable[Any]) -> int:
    """Of the tensors among the values, shared storage once."""
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in values
        if isinstance(value, torch.Tensor)
    }
    return sum(storages.values())
