"""Runs the Triton kernels' tests in Triton's interpreter, in a process that chooses it before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
FOLDER = Path(__file__).parent
SLOW = {
    "test_blocks_triton",
    "test_decode_attention_triton",
    "test_decoder_triton",
    "test_linear_log_probs_triton",
    "test_norm_linear",
    "test_relay_step_fast",
    "test_relay_step_rows",
    "test_wild_values_triton",
}
LONG = {"test_relay_step_fast"}
NUM_PROCESSES = 2
PATHS = [
    *sorted(FOLDER.glob("test_*_triton.py")),
    FOLDER / "test_norm_linear.py",
    FOLDER / "test_pointwise.py",
    FOLDER / "test_relay_step_arguments.py",
    FOLDER / "test_relay_step_fast.py",
    FOLDER / "test_relay_step_rows.py",
]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[Path, Future[subprocess.CompletedProcess[str]]]]:
    """The processes of all files that were asked for, some at a time, longest first."""
    items = [item for item in request.session.items if item.path == Path(__file__)]
    paths = sorted((item.callspec.params["path"] for item in items), key=lambda path: path.stem not in LONG)
    with ThreadPoolExecutor(NUM_PROCESSES) as threads:
        yield {path: threads.submit(run_interpreted, path) for path in paths}


def run_interpreted(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(1800)  # a file waits for those before it, and beside a busy program the interpreter takes its time
@pytest.mark.skipif(torch.cuda.is_available(), reason="the Triton tests run on the device itself")
@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in PATHS]
)
def test_kernels_pass_their_tests_in_the_interpreter(path: Path, runs: Any):
    run = runs[path].result()
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
