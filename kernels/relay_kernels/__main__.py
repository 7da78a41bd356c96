"""Prints what this machine has and which backend each op takes on it, and why: `python -m relay_kernels`."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from relay_kernels.backends import (
    backend_of,
    has_flash_attention,
    has_triton,
    why_no_native,
    why_not_native,
    why_not_triton,
)
from relay_kernels.native import describe_library

BLOCK_OPS = ("add_rms_norm", "norm_linear", "rotate_heads", "silu_mul")
OPS = ("relay_step", "relay_advantages", "linear_log_probs", "append_kv", "decode_attention", *BLOCK_OPS)


def version(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe_devices() -> list[str]:
    """One line per device that tensors can be on."""
    lines = [f"cpu: {platform.machine()}, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        lines.append(f"cuda:{index}: {torch.cuda.get_device_name(index)}, sm_{major}{minor}")
    return lines


def describe_op(op: str, device: torch.device) -> str:
    """The backend that `op` takes for tensors of `device`, and why not the others."""
    chosen = backend_of(op, "auto", device)
    reasons = {
        "triton": why_not_triton(device) or "its interpreter runs only when backend='triton' asks for it",
        "native": why_no_native(op, device)
        or why_not_native(device)
        or "on a CUDA device only if backend='native' asks for it",
    }
    told = "; ".join(f"not {name}: {reason}" for name, reason in reasons.items() if name != chosen and reason)
    return f"{op:<18} {device.type:<5} {chosen:<10} {told}".rstrip()


def main() -> None:
    for name, value in (
        ("torch", torch.__version__),
        ("triton", version("triton") if has_triton() else "not installed"),
    ):
        print(f"{name} {value}")
    flash = version("flash-attn") if has_flash_attention() else "not installed"
    print(f"flash-attn {flash} (decode_attention uses it where backend='flash' asks for it)")
    print(f"native library: {describe_library()}")
    print("\n".join(describe_devices()))
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    print(f"\n{'op':<18} {'on':<5} backend")
    for device in devices:
        for op in OPS:
            print(describe_op(op, device))


if __name__ == "__main__":
    main()
