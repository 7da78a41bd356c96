"""Number of KV blocks that fit in memory."""

from __future__ import annotations

import math
import os
from typing import Literal

import torch

KVCacheGB = float | Literal["auto"]
"""Memory for keys and values in GB (10^9 bytes); `auto` takes a share of what is free when they are allocated."""
FREE_CUDA_SHARE, CPU_SHARE = 0.8, 0.25
"""Share of the free memory of a GPU, and of all memory of a CPU, that `auto` takes."""
GB = 10**9


def require_sizes(max_num_seqs: int, kv_cache_gb: KVCacheGB, block_size: int = 64) -> None:
    """Raises ValueError, naming the setting, for sizes that no engine can have."""
    if max_num_seqs < 1:
        raise ValueError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
    if block_size < 1 or block_size % 16:
        raise ValueError(f"block_size must be a multiple of 16, not {block_size}")
    is_number = isinstance(kv_cache_gb, (int, float)) and not isinstance(kv_cache_gb, bool)
    if kv_cache_gb != "auto" and not (is_number and 0 < float(kv_cache_gb) < math.inf):
        raise ValueError(f"kv_cache_gb must be 'auto' or a number of GB above 0, not {kv_cache_gb!r}")


def num_kv_blocks(
    kv_cache_gb: KVCacheGB, bytes_per_token: int, block_size: int, most_blocks: int, device: torch.device
) -> int:
    """Returns the number of blocks that fit, at most `most_blocks`.

    bytes_per_token: of all models that get this number of blocks. Raises ValueError if not even one fits.
    """
    num_bytes = auto_bytes(device) if kv_cache_gb == "auto" else int(float(kv_cache_gb) * GB)
    num_blocks = min(most_blocks, num_bytes // max(bytes_per_token * block_size, 1))
    if num_blocks < 1:
        block_bytes = bytes_per_token * block_size
        raise ValueError(f"kv_cache_gb={kv_cache_gb} holds no KV block: {block_size} tokens take {block_bytes} bytes")
    return num_blocks


def auto_bytes(device: torch.device) -> int:
    """Returns the bytes that `auto` stands for."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(FREE_CUDA_SHARE * (free + cached))
    return int(CPU_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
