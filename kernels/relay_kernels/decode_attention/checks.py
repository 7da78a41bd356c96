"""Argument checks of the attention and the append: each raises one sentence that names the argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relay_kernels.checks import check_slots, has_shared_elements


def check_append(
    key_cache: Tensor,
    value_cache: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    cache_seqlens: Tensor,
    num_new: Tensor | None,
    slots: Tensor | None,
) -> None:
    """Raises ValueError unless the arguments are those of `append_kv`."""
    _check_caches(key_cache, value_cache, "key_cache", "value_cache")
    _check_new(new_key, new_value, key_cache, value_cache)
    _check_rows(new_key.shape[:2], key_cache, cache_seqlens, num_new, slots)


def check_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_seqlens: Tensor,
    new_key: Tensor | None,
    new_value: Tensor | None,
    num_new: Tensor | None,
    slots: Tensor | None,
    scale: float | None,
) -> None:
    """Raises ValueError unless the arguments are those of `decode_attention`."""
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale must be finite, not {scale}")
    _check_caches(key_cache, value_cache, "key_cache", "value_cache")
    _check_query(query, key_cache)
    if (new_key is None) != (new_value is None):
        raise ValueError("new_key and new_value go together; one of them is None")
    if new_key is not None and new_value is not None:
        _check_new(new_key, new_value, key_cache, value_cache)
        if new_key.shape[:2] != query.shape[:2]:
            raise ValueError(f"new_key has [B, T] = {list(new_key.shape[:2])}, query has {list(query.shape[:2])}")
    _check_rows(query.shape[:2], key_cache, cache_seqlens, num_new, slots)


def _check_caches(key_cache: Tensor, value_cache: Tensor, key_name: str, value_name: str) -> None:
    """A pair of [., ., K, D] float tensors of equal shape, dtype and device, contiguous along D."""
    for name, tensor in ((key_name, key_cache), (value_name, value_cache)):
        if tensor.dim() != 4 or not tensor.is_floating_point() or tensor.shape[2] == 0:
            raise ValueError(
                f"{name} must be a float tensor [., ., heads, D], not {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise ValueError(f"{name} must be contiguous along its last dimension, its strides are {tensor.stride()}")
    if (key_cache.shape, key_cache.dtype, key_cache.device) != (
        value_cache.shape,
        value_cache.dtype,
        value_cache.device,
    ):
        raise ValueError(
            f"{value_name} ({value_cache.dtype} {tuple(value_cache.shape)} on {value_cache.device}) must match "
            f"{key_name} ({key_cache.dtype} {tuple(key_cache.shape)} on {key_cache.device})"
        )


def _check_new(new_key: Tensor, new_value: Tensor, key_cache: Tensor, value_cache: Tensor) -> None:
    _check_caches(new_key, new_value, "new_key", "new_value")
    if has_shared_elements(key_cache):
        raise ValueError(f"key_cache must not share elements between places, its strides are {key_cache.stride()}")
    if has_shared_elements(value_cache):
        raise ValueError(f"value_cache must not share elements between places, its strides are {value_cache.stride()}")
    if new_key.shape[2:] != key_cache.shape[2:] or (new_key.dtype, new_key.device) != (
        key_cache.dtype,
        key_cache.device,
    ):
        raise ValueError(
            f"new_key ({new_key.dtype} {tuple(new_key.shape)} on {new_key.device}) does not fit "
            f"key_cache ({key_cache.dtype} {tuple(key_cache.shape)} on {key_cache.device})"
        )


def _check_query(query: Tensor, key_cache: Tensor) -> None:
    if query.dim() != 4 or (query.dtype, query.device) != (key_cache.dtype, key_cache.device):
        raise ValueError(
            f"query must be a 4-dimensional {key_cache.dtype} tensor on {key_cache.device}, not {query.dtype} "
            f"{tuple(query.shape)} on {query.device}"
        )
    if query.shape[3] != key_cache.shape[3] or query.shape[2] % key_cache.shape[2]:
        raise ValueError(
            f"query has {query.shape[2]} heads of size {query.shape[3]}, "
            f"key_cache has {key_cache.shape[2]} of size {key_cache.shape[3]}"
        )
    if query.stride(-1) != 1 and query.shape[-1] > 1:
        raise ValueError(f"query must be contiguous along its last dimension, its strides are {query.stride()}")


def _check_rows(
    shape: torch.Size, key_cache: Tensor, cache_seqlens: Tensor, num_new: Tensor | None, slots: Tensor | None
) -> None:
    """The per-row integers: shapes always; values where looking at them costs no synchronisation."""
    num_rows, num_tokens = shape
    for name, tensor in (("cache_seqlens", cache_seqlens), ("num_new", num_new), ("slots", slots)):
        if tensor is None:
            continue
        if (
            tensor.shape != (num_rows,)
            or tensor.dtype not in (torch.int32, torch.int64)
            or tensor.device != key_cache.device
        ):
            raise ValueError(
                f"{name} must be [{num_rows}] int32 or int64 on {key_cache.device}, not {tensor.dtype} "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
    if slots is None and num_rows > key_cache.shape[0]:
        raise ValueError(
            f"query has {num_rows} rows, key_cache {key_cache.shape[0]} slots; name the rows' slots in `slots`"
        )
    if key_cache.device.type == "cpu" and num_rows:
        _check_values(num_tokens, key_cache, cache_seqlens, num_new, slots)


def _check_values(
    num_tokens: int, key_cache: Tensor, cache_seqlens: Tensor, num_new: Tensor | None, slots: Tensor | None
) -> None:
    added = torch.full_like(cache_seqlens, num_tokens) if num_new is None else num_new
    capacity = key_cache.shape[1]
    if num_new is not None and (int(num_new.min()) < 0 or int(num_new.max()) > num_tokens):
        raise ValueError(f"num_new must lie in 0..{num_tokens}, it holds {int(num_new.min())}..{int(num_new.max())}")
    # Compared by a difference: the sum of a length and the new tokens may exceed its integer type.
    if int(cache_seqlens.min()) < 0 or bool(((added > 0) & (cache_seqlens > capacity - added)).any()):
        raise ValueError(f"cache_seqlens plus the new tokens must lie in 0..{capacity}, the capacity of a slot")
    if slots is not None:
        check_slots(slots, key_cache.shape[0])
