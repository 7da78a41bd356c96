"""What a device can do at most: the floating-point operations a second that MFU is a share of."""

from __future__ import annotations

import torch
from lightning.fabric.utilities.throughput import get_available_flops

HALF_PRECISION = (torch.bfloat16, torch.float16)
DENSE_FLOPS_PER_S = {
    "h100 nvl": 835.5e12,
    "h200 nvl": 835.5e12,
    "h200": 989.4e12,  # also in a GH200: the chip of an H100 SXM with other memory
    "l40s": 362.05e12,
    "l40": 181.05e12,
}
"""Of dense products of bf16 or fp16 by a part of the device's name, longer parts first; from NVIDIA's data sheets, half
of what they state with sparsity. Lightning's table lacks these, counts sparse products, or takes an L40 for an L4."""


def peak_flops_per_s(device: torch.device, dtype: torch.dtype) -> float | None:
    """Of matrix products of `dtype`; None, which Lightning warns about, for a device that nobody has told it of."""
    if device.type == "cuda" and dtype in HALF_PRECISION:
        name = torch.cuda.get_device_name(device).lower()
        for part, flops_per_s in DENSE_FLOPS_PER_S.items():
            if part in name:
                return flops_per_s
    return get_available_flops(device, dtype)
