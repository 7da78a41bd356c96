"""Operators of the relay: one folder per op, each with a plain PyTorch reference that defines it.

The public function of an op has the name of its folder: `from relay_kernels import linear_log_probs` is the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relay_kernels.linear_log_probs import linear_log_probs
from relay_kernels.relay_advantages import relay_advantages

if TYPE_CHECKING:
    from relay_kernels.relay_step import relay_step

__all__ = ["linear_log_probs", "relay_advantages", "relay_step"]


def __getattr__(name: str) -> Any:
    if name != "relay_step":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from relay_kernels.relay_step import relay_step

    globals()[name] = relay_step
    return relay_step
