"""A device that says it is a CUDA one and keeps its values in the CPU's memory, so that code for a GPU runs anywhere.

As on a GPU, an operator refuses tensors of two devices. `num_reads` counts how often the host has waited for values.
Kernels are not pretended: operators run by their definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from relay_kernels import backends
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
CROSSES = ("aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::set_")
"""Operators that take tensors of both devices: copies, and indices that PyTorch moves itself."""

READS = {Tensor.tolist, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__bool__}
WITHOUT_DRIVER = {
    Tensor.__invert__: torch.bitwise_not,
    Tensor.contiguous: torch.ops.aten.contiguous,
    Tensor.copy_: torch.ops.aten.copy_,
}
"""Methods that make the device the current one before they call an operator, and the operator."""


class PretendTensor(Tensor):
    """A tensor on the pretended device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made: PretendTensor = Tensor._make_wrapper_subclass(cls, inner.size(), **layout, dtype=inner.dtype, device=GPU)
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner!r} pretended to be on {GPU}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func._schema.name
    others = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    strangers = [each for each in others if not isinstance(each, PretendTensor) and each.dim() > 0]
    if strangers and len(strangers) < len(others) and not name.startswith(CROSSES):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} was given some on {GPU} and cpu")
    goes_home = kwargs.get("device") == CPU
    outputs = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    return outputs if goes_home else tree_map(lambda x: PretendTensor(x) if isinstance(x, Tensor) else x, outputs)


def _inner(value: Any) -> Any:
    if isinstance(value, PretendTensor):
        return value.inner
    return CPU if isinstance(value, torch.device) else value


class _Dispatch(TorchDispatchMode):
    """Makes new tensors on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_there = any(isinstance(each, PretendTensor) for each in tree_leaves((args, kwargs)))
        return _run(func, args, kwargs) if is_there or kwargs.get("device") == GPU else func(*args, **kwargs)


class PretendCuda(TorchFunctionMode):
    """Names the device in full, and reads values back."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.device:
            args, kwargs = tree_map(_in_full, args), tree_map(_in_full, kwargs or {})
        if func in READS and isinstance(args[0], PretendTensor):
            self.num_reads += 1
            if args[0].numel():  # as an operator, so that a capture sees it
                torch.ops.aten._local_scalar_dense(args[0].reshape(-1).select(0, 0))
            return func(args[0].inner)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], PretendTensor):
            return _index(*args)
        if func in WITHOUT_DRIVER:
            return WITHOUT_DRIVER[func](*args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU:
            return func(*args, **{**kwargs, "device": CPU}).to(GPU)
        return func(*args, **(kwargs or {}))


def _index(tensor: Tensor, index: Any, *value: Any) -> Tensor | None:
    """`tensor[index]`, or with a value `tensor[index] = value`, by operators: the brackets themselves want a driver."""
    items, dim, picked = list(index if isinstance(index, tuple) else (index,)), 0, list[Tensor | None]()
    if Ellipsis in [item for item in items if not isinstance(item, Tensor)]:
        place = next(i for i, item in enumerate(items) if item is Ellipsis)
        rest = tensor.dim() - sum(item is not None for item in items) + 1
        items[place : place + 1] = [slice(None)] * rest
    for item in items:
        if isinstance(item, int):
            tensor = tensor.select(dim, item)
            continue
        if item is None:
            tensor = tensor.unsqueeze(dim)
        elif isinstance(item, slice):
            tensor = torch.ops.aten.slice.Tensor(tensor, dim, item.start, item.stop, item.step or 1)
        else:
            picked += [None] * (dim - len(picked)) + [torch.as_tensor(item)]
        dim += 1
    if not value:
        return torch.ops.aten.index.Tensor(tensor, picked) if picked else tensor
    [new] = value
    if not picked:
        torch.ops.aten.copy_(tensor, new) if isinstance(new, Tensor) else tensor.fill_(new)
    else:
        new = new if isinstance(new, Tensor) else torch.full((), new, dtype=tensor.dtype, device=GPU)
        tensor.index_put_(tuple(picked), new)
    return None


def _in_full(value: Any) -> Any:
    is_cuda = (isinstance(value, str) and value == "cuda") or (isinstance(value, torch.device) and value.type == "cuda")
    return GPU if is_cuda else value


@contextmanager
def pretend_cuda() -> Iterator[PretendCuda]:
    """Within, tensors can be on a device "cuda"."""
    no_driver: Callable[[], None] = lambda: None  # noqa: E731
    mode = PretendCuda()
    with (
        patch.object(torch.cuda, "_lazy_init", no_driver),
        patch.object(backends, "has_triton", lambda: False),
        _Dispatch(),
        mode,
    ):
        yield mode


def to_pretended(model: nn.Module) -> nn.Module:
    """The model with all its tensors on the device."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(PretendTensor(parameter.detach()), parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = PretendTensor(buffer)
    return model
