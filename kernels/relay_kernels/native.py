"""The native library: one shared library of C++, built with the package where there is a compiler."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

LIBRARY = {"linux": "librelay_kernels.so", "darwin": "librelay_kernels.dylib"}.get(sys.platform, "relay_kernels.dll")


def find_library() -> Path | None:
    """Where the library lies, or None; in an editable installation apart from the Python files, hence the walk."""
    import relay_kernels

    folders = [Path(__file__).parent, *map(Path, relay_kernels.__path__)]
    return next((folder / LIBRARY for folder in folders if (folder / LIBRARY).is_file()), None)


@functools.cache
def load_library() -> tuple[Any, str | None]:
    """(the module of native functions, None), or (None, the reason why there is none)."""
    path = find_library()
    if path is None:
        return None, "the native library was not built (no C++ compiler at installation, or not installed by pip)"
    try:
        import tvm_ffi

        return tvm_ffi.load_module(str(path)), None
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"the native library {path} does not load: {error}"


@functools.cache
def native_function(name: str) -> Any:
    """A function of the library, or None where there is no library. Takes tensors as they are, without a copy."""
    library, _ = load_library()
    return None if library is None else library[name]


def run_native(name: str, *arguments: Any) -> bool:
    """Calls a function of the library; returns False, and nothing was done, if the library refuses the arguments.

    It refuses what does not fit. Tensors without memory (meta) and numbers of another type do not even get there.
    """
    try:
        return bool(native_function(name)(*arguments))
    except (OverflowError, TypeError):
        return False
    except RuntimeError:
        if any(isinstance(argument, Tensor) and argument.is_meta for argument in arguments):
            return False
        raise


def describe_library() -> str:
    """One line: what was built, or why there is nothing."""
    library, reason = load_library()
    return reason or str(library["describe"]())
