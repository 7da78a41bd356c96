"""How many KV blocks fit in memory."""

from __future__ import annotations

import os
from typing import Literal

import torch

KVCacheGB = float | Literal["auto"]
"""Memory for keys and values in GB (10^9 bytes); `auto` takes a share of what is free when they are allocated."""
FREE_CUDA_SHARE, CPU_SHARE = 0.8, 0.25
"""Share of the free memory of a GPU, and of all memory of a CPU, that `auto` takes."""
GB = 10**9


def num_kv_blocks(
    kv_cache_gb: KVCacheGB, bytes_per_token: int, block_size: int, most_blocks: int, device: torch.device
) -> int:
    """Returns the number of blocks that fit, at most `most_blocks`.

    bytes_per_token: of all models that get this number of blocks. Raises ValueError if not even one fits.
    """
    num_bytes = auto_bytes(device) if kv_cache_gb == "auto" else int(float(kv_cache_gb) * GB)
    num_blocks = min(most_blocks, num_bytes // max(bytes_per_token * block_size, 1))
    if num_blocks < 1:
        raise ValueError(
            f"kv_cache_gb={kv_cache_gb} holds no KV block: {block_size} tokens take {bytes_per_token * block_size} bytes"
        )
    return num_blocks


def auto_bytes(device: torch.device) -> int:
    """Returns the bytes that `auto` stands for."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(FREE_CUDA_SHARE * (free + cached))
    return int(CPU_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
