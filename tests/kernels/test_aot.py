"""Every Triton kernel compiles for the GPUs we support, does not spill and fits shared memory; no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def compile_all(*options: str) -> list[dict]:
    """The rows of ahead_of_time.py, run in a process that has not chosen Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("ahead_of_time.py")), "--json", *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def assert_fits(rows: list[dict]) -> None:
    assert rows
    assert not [row for row in rows if row["stack_bytes"] and row["arch"] == 90], "registers spill"
    assert not [row for row in rows if not row["fits"]], "shared memory is exceeded"


@pytest.mark.slow
def test_the_main_kernels_compile_for_hopper_without_a_spill():
    assert_fits(compile_all("--arch", "90", "--quick"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_kernel_compiles_for_every_architecture():
    rows = compile_all("--arch", "80", "90", "100")
    assert {row["arch"] for row in rows} == {80, 90, 100}
    assert_fits(rows)
