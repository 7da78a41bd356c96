"""Argument checks of the attention and the append: each raises one sentence that names the argument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from relay_kernels.checks import has_shared_elements

BLOCK_STEP = 16
"""Rows of several blocks have blocks of a multiple of so many tokens: no vector of keys straddles two blocks."""
INTEGERS = (torch.int32, torch.int64)
_INTEGERS = "int32 or int64"


def check_append(
    key_cache: Tensor,
    value_cache: Tensor,
    new_key: Tensor,
    new_value: Tensor,
    cache_seqlens: Tensor,
    num_new: Tensor | None,
    block_table: Tensor | None,
) -> None:
    """Raises ValueError unless the arguments are those of `append_kv`."""
    _check_caches(key_cache, value_cache, "key_cache", "value_cache")
    _check_new(new_key, new_value, key_cache, value_cache)
    _check_rows(new_key.shape[:2], key_cache, cache_seqlens, num_new, block_table)


def check_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cache_seqlens: Tensor,
    new_key: Tensor | None,
    new_value: Tensor | None,
    num_new: Tensor | None,
    block_table: Tensor | None,
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
    _check_rows(query.shape[:2], key_cache, cache_seqlens, num_new, block_table)


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
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if has_shared_elements(cache):
            raise ValueError(f"{name} must not share elements between places, its strides are {cache.stride()}")
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
    shape: torch.Size, key_cache: Tensor, cache_seqlens: Tensor, num_new: Tensor | None, block_table: Tensor | None
) -> None:
    """Raises ValueError for per-row integers: shapes always, values where reading them costs no host sync."""
    num_rows, num_tokens = shape
    for name, tensor in (("cache_seqlens", cache_seqlens), ("num_new", num_new)):
        if tensor is not None and tensor.shape != (num_rows,):
            raise ValueError(f"{name} must be [{num_rows}] {_INTEGERS}, not {tensor.dtype} {tuple(tensor.shape)}")
    if block_table is not None and (
        block_table.dim() != 2 or block_table.shape[0] != num_rows or block_table.shape[1] == 0
    ):
        raise ValueError(
            f"block_table must be [{num_rows}, at least 1] {_INTEGERS}, "
            f"not {block_table.dtype} {tuple(block_table.shape)}"
        )
    for name, tensor in (("cache_seqlens", cache_seqlens), ("num_new", num_new), ("block_table", block_table)):
        if tensor is not None and (tensor.dtype not in INTEGERS or tensor.device != key_cache.device):
            raise ValueError(f"{name} must be {_INTEGERS} on {key_cache.device}, not {tensor.dtype} on {tensor.device}")
    num_blocks, block_size = key_cache.shape[:2]
    if block_table is None and num_rows > num_blocks:
        raise ValueError(
            f"query has {num_rows} rows, key_cache {num_blocks} blocks; name the rows' blocks in `block_table`"
        )
    if block_table is not None and block_table.shape[1] > 1 and block_size % BLOCK_STEP:
        raise ValueError(
            f"key_cache has blocks of {block_size} tokens; rows of several blocks need a multiple of {BLOCK_STEP}"
        )
    if key_cache.device.type == "cpu" and num_rows:
        _check_values(num_tokens, key_cache, cache_seqlens, num_new, block_table)


def _check_values(
    num_tokens: int, key_cache: Tensor, cache_seqlens: Tensor, num_new: Tensor | None, block_table: Tensor | None
) -> None:
    num_blocks, block_size = key_cache.shape[:2]
    num_columns = 1 if block_table is None else block_table.shape[1]
    capacity = min(block_size * num_columns, torch.iinfo(torch.int64).max)
    added = torch.full_like(cache_seqlens, num_tokens) if num_new is None else num_new
    if num_new is not None and (int(num_new.min()) < 0 or int(num_new.max()) > num_tokens):
        raise ValueError(f"num_new must lie in 0..{num_tokens}, it holds {int(num_new.min())}..{int(num_new.max())}")
    # Compared by a difference: the sum of a length and the new tokens may exceed its integer type.
    if int(cache_seqlens.min()) < 0 or bool(((added > 0) & (cache_seqlens > capacity - added)).any()):
        raise ValueError(f"cache_seqlens plus the new tokens must lie in 0..{capacity}, what a row's blocks hold")
    if block_table is not None:
        _check_table(block_table, num_blocks, block_size, cache_seqlens, added)


def _check_table(block_table: Tensor, num_blocks: int, block_size: int, cache_seqlens: Tensor, added: Tensor) -> None:
    """Raises ValueError for blocks that do not exist where a row has tokens, and for one that two rows write to."""
    column = torch.arange(block_table.shape[1])
    has_new = (added > 0)[:, None]  # [B, 1]
    length = torch.where(added > 0, cache_seqlens, 0).long()[:, None]
    is_used = has_new & (column * block_size < length + added[:, None])  # [B, M]
    used = block_table[is_used]
    if used.numel() and (int(used.min()) < 0 or int(used.max()) >= num_blocks):
        raise ValueError(
            f"block_table must name blocks 0..{num_blocks - 1} where a row has tokens, "
            f"it holds {int(used.min())}..{int(used.max())}"
        )
    written = block_table[is_used & ((column + 1) * block_size > length)]
    blocks, counts = torch.unique(written, return_counts=True)
    if len(blocks) < len(written):
        repeated = int(blocks[counts.argmax()])
        raise ValueError(f"block_table must not let two rows write to one block, as they do to block {repeated}")
