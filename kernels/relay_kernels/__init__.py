"""Operators of the relay: one folder per op, each with a plain PyTorch reference that defines it.

The public function of an op has the name of its folder, and here the name means the function:
`from relay_kernels import linear_log_probs`. Its parts come by `from relay_kernels.linear_log_probs import ...`.
"""

from relay_kernels.add_rms_norm import add_rms_norm
from relay_kernels.decode_attention import append_kv, decode_attention
from relay_kernels.linear_log_probs import linear_log_probs
from relay_kernels.norm_linear import norm_linear
from relay_kernels.relay_advantages import relay_advantages
from relay_kernels.relay_step import relay_step
from relay_kernels.rotate_heads import rotate_heads
from relay_kernels.silu_mul import silu_mul

__all__ = [
    "add_rms_norm",
    "append_kv",
    "decode_attention",
    "linear_log_probs",
    "norm_linear",
    "relay_advantages",
    "relay_step",
    "rotate_heads",
    "silu_mul",
]
