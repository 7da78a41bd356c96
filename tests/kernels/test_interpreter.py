"""Runs the Triton kernels' tests in Triton's interpreter, in a process that chooses it before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
FOLDER = Path(__file__).parent
SLOW = {"test_decoder_triton"}
PATHS = [
    *sorted(FOLDER.glob("test_*_triton.py")),
    FOLDER / "test_norm_linear.py",
    FOLDER / "test_pointwise.py",
    FOLDER / "test_relay_step_fast.py",
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the Triton tests run on the device itself")
@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOW)) for path in PATHS]
)
def test_kernels_pass_their_tests_in_the_interpreter(path: Path):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
