"""Planned bytes of weights and optimiser states against those of real models and optimisers, exactly."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from relay_lightning.memory.weights import (
    Weights,
    optimizer_bytes,
    optimizer_workspace_bytes,
    plan_weights,
    storage_bytes,
)
from relay_lightning.models.loading import load_config, load_model
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.settings import LoadSettings
from relay_lightning.models.skeleton import ModelPlan


@pytest.mark.parametrize(("size", "billions"), [("0.6B", 0.596), ("1.7B", 1.721), ("8B", 8.191)])
def test_published_architectures_have_their_published_sizes(size, billions):
    name = f"Qwen/Qwen3-{size}"
    weights = plan_weights(ModelPlan(name, load_config(name), LoadSettings(), is_trained=False))
    assert weights.num_parameters / 1e9 == pytest.approx(billions, abs=5e-4)
    assert weights.num_bytes == 2 * weights.num_parameters


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("lora", [None, LoRASettings(rank=3)])
def test_whole_weights_are_as_large_as_planned(small_pair, dtype, lora):
    loading = LoadSettings(dtype=dtype)
    model = load_model(small_pair.student, settings=loading)
    if lora is not None:
        add_lora(model, lora)
    planned = plan_weights(ModelPlan("student", model.config, loading, is_trained=True, lora=lora))
    assert planned.num_bytes == storage_bytes(model.parameters())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(planned.shapes, key=str) == sorted(((tuple(p.shape), p.dtype) for p in trained), key=str)


def test_quantised_weights_are_as_large_as_planned(small_pair):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    loading = LoadSettings(dtype="bf16", quantization="nf4")
    model = load_model(small_pair.teacher, settings=loading)
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert states
    tables = [
        table for state in states for table in (state.absmax, state.code, state.offset, *vars(state.state2).values())
    ]
    found = storage_bytes([*model.parameters(), *tables])
    planned = plan_weights(ModelPlan("teacher", model.config, loading, is_trained=False))
    assert planned.num_bytes == found
    assert planned.largest_dequantized_bytes == 2 * max(state.shape.numel() for state in states)


def of_bitsandbytes(name):
    def make(parameters):
        return getattr(pytest.importorskip("bitsandbytes").optim, name)(parameters)

    return make


@pytest.mark.parametrize("num_rows", [1, 300, 512, 2048])
@pytest.mark.parametrize(
    "make_optimizer",
    [
        torch.optim.AdamW,
        partial(torch.optim.AdamW, fused=True),
        partial(torch.optim.SGD, momentum=0.9),
        torch.optim.Adafactor,
        of_bitsandbytes("AdamW8bit"),
        of_bitsandbytes("PagedAdamW8bit"),
    ],
    ids=["adamw", "fused", "momentum", "adafactor", "adamw8bit", "pagedadamw8bit"],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_optimiser_state_is_as_large_as_planned(make_optimizer, num_rows):
    shapes = ((num_rows, 96), (num_rows, 96), (num_rows,), (40, 7))
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(parameters)
    optimizer.step()
    found = storage_bytes(value for state in optimizer.state.values() for value in state.values())
    weights = Weights(0, 0, tuple((shape, torch.float32) for shape in shapes), 0)
    assert optimizer_bytes(make_optimizer, weights) == found


def test_only_foreach_loops_copy_the_weights_in_an_optimiser_step():
    weights = Weights(0, 0, (((10, 10), torch.float32),), 0)

    def workspace(device_type, **options):
        return optimizer_workspace_bytes(
            lambda parameters: torch.optim.AdamW(parameters, **options), weights, device_type
        )

    assert workspace("cuda") == 400
    assert workspace("cuda", fused=True) == workspace("cuda", foreach=False) == workspace("cpu") == 0
