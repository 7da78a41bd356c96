"""What the processes of a run tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def gather_objects(value: T) -> list[T]:
    """Everybody's `value`, by rank; every process must take part. Alone: just the own one."""
    if not _are_several():
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def gather_tensors(tensor: Tensor) -> Tensor:
    """Everybody's `tensor`, all of one shape, stacked by rank; every process must take part."""
    if not _are_several():
        return tensor.unsqueeze(0)
    tensors = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(tensors, tensor.contiguous())
    return torch.stack(tensors)


def gather_in_turn(share: Sequence[T]) -> list[T]:
    """The shares of all processes, one item of each in turn: the inverse of dealing out `items[rank::world_size]`.

    Items must not be None. Every process must take part.
    """
    in_turn = chain.from_iterable(zip_longest(*gather_objects(list(share))))
    return [item for item in in_turn if item is not None]


def _are_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
