"""The native library under AddressSanitizer and UndefinedBehaviorSanitizer: refusals, wild values and random calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_library import needs_library

ROOT = Path(__file__).parents[2]
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer"
FILES = (
    "test_native_fuzz",
    "test_decode_attention",
    "test_relay_step_arguments",
    "test_relay_step_rows",
    "test_pointwise",
    "test_native_attacks",
)
NUM_CALLS = 200
"""Random calls of each of the six native ops, 1,200 in all."""


@pytest.fixture(scope="module")
def compiler() -> str:
    """A compiler that has the sanitizers and their libraries."""
    found = os.environ.get("CXX") or shutil.which("g++")
    if found is None or shutil.which("cmake") is None:
        pytest.skip("there is no g++ or no CMake")
    probe = [found, *FLAGS.split(), "-x", "c++", "-shared", "-fPIC", "-o", os.devnull, "-"]
    if subprocess.run(probe, input="int x;", text=True, capture_output=True, check=False).returncode:
        pytest.skip(f"{found} has no AddressSanitizer")
    if not Path(library_of(found, "libasan.so")).is_absolute():
        pytest.skip(f"{found} has no shared libasan")
    return found


def library_of(compiler: str, name: str) -> str:
    run = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.fixture(scope="module")
def sanitized(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    options = [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCMAKE_CXX_FLAGS={FLAGS}"]
    options += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DRELAY_CUDA=OFF", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    for command in ([*configure, *options], ["cmake", "--build", str(folder), "--parallel", "2"]):
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return folder / "librelay_kernels.so"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_library
@pytest.mark.parametrize("file", FILES)
def test_nothing_reads_or_writes_beyond_its_tensors(file: str, compiler: str, sanitized: Path):
    environment = os.environ | {
        "LD_PRELOAD": f"{library_of(compiler, 'libasan.so')} {library_of(compiler, 'libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "fakes"), os.environ.get("PYTHONPATH", "")]),
        "RELAY_TEST_LIBRARY": str(sanitized),
        "RELAY_FUZZ_CALLS": str(NUM_CALLS),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", "-p", "sanitized_library"]
    command += ["-k", "native or idle or refused", "--timeout", "3000", f"tests/kernels/{file}.py"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-6000:]
