"""Compiles every Triton kernel without a GPU and prints registers, stack and shared memory of each.

    python tests/kernels/ahead_of_time.py [--arch 80 90 100] [--op decode_attention ...] [--json]

The ops' own launch functions run on tensors of the "meta" device, which have shapes but no memory, at the shapes of
production; in place of a launch the kernel is compiled as the launch would have it. Must run without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from aot_cases import CASES
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that one program may have, by architecture (CUDA C++ Programming Guide)."""


@dataclass(frozen=True)
class Compiled:
    """What one kernel takes on one architecture."""

    op: str
    case: str
    kernel: str
    arch: int
    num_warps: int
    registers: int
    stack_bytes: int
    """Local memory of a thread: spilled registers, or arrays indexed at run time. 0 is good."""
    shared_bytes: int
    instructions: str
    """The kinds of matrix and asynchronous copy instructions that the machine code has."""

    @property
    def fits(self) -> bool:
        return self.shared_bytes <= SHARED_LIMIT[self.arch]


class _Driver:
    """Stands in for the CUDA driver: names a target, has no device."""

    def __init__(self, arch: int) -> None:
        self._arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._arch, 32)

    def get_current_device(self) -> int:
        return self._arch  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return device


@contextmanager
def compile_only(arch: int) -> Iterator[list]:
    """Within, a kernel launch compiles for `arch` and adds the compiled kernel to the list."""
    kernels: list = []
    run = JITFunction.run

    def compile_instead(self, *args, grid, warmup, **kwargs):  # noqa: ARG001 - the launch's signature
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    driver.set_active(_Driver(arch))
    JITFunction.run = compile_instead
    try:
        yield kernels
    finally:
        JITFunction.run = run


def inspect(cubin: bytes) -> tuple[int, int, str]:
    """Registers and stack bytes of a thread, and the notable instructions."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run(
            [tools / "cuobjdump", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))
    found = [
        name
        for name in ("HGMMA", "UTCHMMA", "HMMA", "LDGSTS", "UTMALDG", "LDL", "STL")
        if re.search(rf"\b{name}\b", sass)
    ]
    return registers, stack, " ".join(found)


def compile_case(op: str, case: str, call: Callable[[], object], arch: int) -> list[Compiled]:
    with compile_only(arch) as kernels:
        call()
    rows = []
    for kernel in kernels:
        registers, stack, instructions = inspect(kernel.asm["cubin"])
        meta = kernel.metadata
        rows.append(Compiled(op, case, kernel.name, arch, meta.num_warps, registers, stack, meta.shared, instructions))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100])
    parser.add_argument("--op", nargs="+", default=sorted(CASES))
    parser.add_argument("--quick", action="store_true", help="only the first two cases of each op")
    parser.add_argument("--json", action="store_true", help="one JSON list and no table")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET is set; compilation needs a process without it")
    rows = []
    for op in options.op:
        module = importlib.import_module(f"relay_kernels.{op}.triton_impl")
        cases = list(CASES[op](module).items())
        for case, call in cases[:2] if options.quick else cases:
            for arch in options.arch:
                rows += compile_case(op, case, call, arch)
    if options.json:
        print(json.dumps([asdict(row) | {"fits": row.fits} for row in rows]))
        return
    print(
        f"{'op':<18} {'case':<34} {'kernel':<24} {'sm':>3} warps {'regs':>5} {'stack':>6} {'shared':>7}  instructions"
    )
    for row in rows:
        shared = f"{row.shared_bytes}{'' if row.fits else '!'}"
        print(
            f"{row.op:<18} {row.case:<34} {row.kernel:<24} {row.arch:>3} {row.num_warps:>5} {row.registers:>5} "
            f"{row.stack_bytes:>6} {shared:>7}  {row.instructions}"
        )


if __name__ == "__main__":
    main()
