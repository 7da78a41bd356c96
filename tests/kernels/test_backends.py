"""Which backend a call takes, and what is said when it cannot."""

from __future__ import annotations

import pytest
import torch
from relay_kernels import __main__ as overview
from relay_kernels.backends import choose_backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_takes_the_reference_on_a_cpu_even_under_the_interpreter(monkeypatch):
    assert choose_backend("op", "auto", CPU) == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("op", "auto", CPU) == "reference"


def test_auto_takes_triton_on_a_gpu_unless_the_op_has_a_reason_against_it():
    pytest.importorskip("triton")
    assert choose_backend("op", "auto", CUDA) == "triton"
    assert choose_backend("op", "auto", CUDA, why_not="odd dtype") == "reference"


def test_an_explicit_backend_that_cannot_run_raises_its_reason():
    with pytest.raises(RuntimeError, match=r"'triton' of op cannot run: .*cpu"):
        choose_backend("op", "triton", CPU)
    with pytest.raises(RuntimeError, match="odd dtype"):
        choose_backend("op", "triton", CUDA, why_not="odd dtype")
    with pytest.raises(ValueError, match="backend='cuda' of op is unknown"):
        choose_backend("op", "cuda", CPU)


def test_the_overview_names_every_op_with_its_backend_and_the_reason(capsys):
    overview.main()
    lines = capsys.readouterr().out.splitlines()
    for op in overview.OPS:
        [line] = [line for line in lines if line.startswith(f"{op} ") and " cpu " in line]
        assert "reference" in line
        assert "not triton: " in line
