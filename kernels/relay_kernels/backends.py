"""Which implementation of an op runs: the PyTorch reference anywhere, the native library on CPU tensors, Triton on CUDA
tensors or in its interpreter, FlashAttention where it is asked for."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from relay_kernels.native import load_library

BACKENDS = ("auto", "reference", "native", "triton", "flash")
NATIVE_DTYPES = (torch.float32, torch.bfloat16)
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NATIVE_DEVICES = {
    "relay_step": ("cpu", "cuda"),
    **dict.fromkeys(("append_kv", "decode_attention", "add_rms_norm", "rotate_heads", "silu_mul"), ("cpu",)),
}
"""For which tensors the native library has an op."""
NO_NATIVE = "the op has no native implementation"
NO_FLASH = "FlashAttention has no such op"
ON_CPU_ONLY = "its native code is for the CPU"
FAKE = "fake tensors have shapes and no values"


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported; looks for the package without importing it."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def has_flash_attention() -> bool:
    """Whether FlashAttention can be imported; looks for the package without importing it."""
    return importlib.util.find_spec("flash_attn") is not None


def is_interpreting() -> bool:
    """Whether Triton's interpreter, for which CPU tensors will do, was asked for: TRITON_INTERPRET=1 at the start."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not_triton(device: torch.device) -> str | None:
    """The reason why Triton cannot run on tensors of `device`, or None when it can."""
    if not has_triton():
        return "the package 'triton' is not installed"
    if device.type == "cuda" or is_interpreting():
        return None
    return f"the tensors are on {device.type}, not on a CUDA device"


def why_not_native(device: torch.device) -> str | None:
    """The reason why the native library cannot run on tensors of `device`, or None when it can."""
    kind = device.type
    library, reason = load_library()
    if kind == "cpu" or (kind == "cuda" and reason is not None):
        return reason
    if kind != "cuda":
        return f"the tensors are on {kind}, neither on the CPU nor on a CUDA device"
    return None if library["has_cuda"]() else "the native library was built without nvcc"


def choose_backend(
    op: str,
    backend: str,
    device: torch.device,
    *,
    why_not: str | None = None,
    no_native: str | None = NO_NATIVE,
    no_flash: str | None = NO_FLASH,
) -> str:
    """`reference`, `native`, `triton` or `flash` for a call of `op` on tensors of `device`.

    "auto" takes Triton on CUDA tensors, the native library on CPU tensors and the reference where those cannot run;
    the interpreter and FlashAttention run only when they are asked for. `why_not` is the op's own reason against Triton
    for these arguments, such as a dtype, `no_native` and `no_flash` those against the two others. Raises ValueError for
    a name that is no backend and RuntimeError for an explicit backend that cannot run.
    """
    if backend == "auto" and no_native is None and device.type == "cpu" and load_library()[1] is None:
        return "native"  # What every step of a decoder on a CPU takes: no sentence is put together before it.
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r} of {op} is unknown; it is one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    wanted = backend if backend != "auto" else "triton" if device.type == "cuda" else "native"
    if wanted == "triton":
        reason = why_not_triton(device) or why_not
    else:
        reason = no_flash if wanted == "flash" else no_native or why_not_native(device)
    if reason is None:
        return wanted
    if backend == "auto":
        return "reference"
    raise RuntimeError(f"backend={backend!r} of {op} cannot run: {reason}")


def backend_of(op: str, backend: str, device: torch.device) -> str:
    """`choose_backend` for `op` on tensors of `device` of any dtype and shape that it takes."""
    no_flash = None if op == "decode_attention" else NO_FLASH
    return choose_backend(op, backend, device, no_native=why_no_native(op, device), no_flash=no_flash)


def why_no_native(op: str, device: torch.device) -> str | None:
    """The reason why the library, where it is built, has no `op` for tensors of `device`; None when it has."""
    if device.type in NATIVE_DEVICES.get(op, ()):
        return None
    return ON_CPU_ONLY if op in NATIVE_DEVICES else NO_NATIVE


def choose_backend_for(
    op: str,
    backend: str,
    first: Tensor,
    *others: Tensor | None,
    names: Sequence[str],
    why_not: str | None = None,
    no_flash: str | None = NO_FLASH,
) -> str:
    """`choose_backend` for an op whose native code is for the CPU, and whose fast backends want one dtype of all its
    tensors, one that they know. `names` are those of the tensors, for the sentence that says which one is at fault."""
    dtype = first.dtype
    reason = FAKE if type(first) is FakeTensor else None
    for other in others:
        if other is not None and other.dtype is not dtype:
            name = next(name for name, each in zip(names[1:], others, strict=True) if each is other)
            reason = reason or f"its tensors have one dtype, not {dtype} ({names[0]}) and {other.dtype} ({name})"
    no_native = reason or (ON_CPU_ONLY if first.is_cuda else _why_not_dtype(NATIVE_DTYPES, dtype, names[0]))
    if no_native is not None:  # Else the dtype suits Triton too.
        why_not = reason or _why_not_dtype(TRITON_DTYPES, dtype, names[0]) or why_not
    return choose_backend(op, backend, first.device, why_not=why_not, no_native=no_native, no_flash=no_flash)


def are_fake(first: Tensor, *others: Tensor | None) -> bool:
    """Returns True for fake tensors of one dtype, of which a fast backend would make nothing but its outputs."""
    return isinstance(first, FakeTensor) and all(other is None or other.dtype is first.dtype for other in others)


def _why_not_dtype(dtypes: tuple[torch.dtype, ...], dtype: torch.dtype, name: str) -> str | None:
    return None if dtype in dtypes else f"its dtypes are {', '.join(map(str, dtypes))}, not {dtype} ({name})"


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's CUDA device the current one, which is where Triton launches; nothing for other devices."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def as_rows(tensor: Tensor) -> Tensor:
    """[rows, D] of a [..., D] tensor, contiguous within a row: a view where its strides allow one."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
