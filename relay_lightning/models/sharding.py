"""A model whose weights are spread over processes (PyTorch's `fully_shard`, FSDP2), and how to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

P = ParamSpec("P")
T = TypeVar("T")


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Spreads the weights of `model` over the processes of a one-dimensional mesh, in place, block by block."""
    blocks = set(model._no_split_modules or ())
    for module in model.modules():
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.run_as_forward = MethodType(_call, model)
    register_fsdp_forward_method(model, "run_as_forward")


def run_as_forward(
    function: Callable[Concatenate[Any, P], T], model: nn.Module, *args: P.args, **kwargs: P.kwargs
) -> T:
    """`function(model, ...)`, which may use any part of the model as a forward pass would."""
    if isinstance(model, FSDPModule):
        return model.run_as_forward(function, *args, **kwargs)
    return function(model, *args, **kwargs)


def is_sharded(model: nn.Module) -> bool:
    """Returns True if the weights of `model` are spread over processes."""
    return isinstance(model, FSDPModule)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it every process has all weights of `model` and may run it, or not, without waiting for the others.

    All processes must enter it together; for a model that is not sharded it does nothing.
    """
    if not is_sharded(model):
        yield
        return
    model.set_reshard_after_forward(False)
    # The weights must not become inference tensors, which could not be trained through afterwards.
    with torch.inference_mode(False), torch.no_grad():
        # A forward pass, and nothing else that is public, settles which module is the root and gathers all weights.
        model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)
    try:
        yield
    finally:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        model.set_reshard_after_forward(True)


def _call(model: nn.Module, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    return function(model, *args, **kwargs)
