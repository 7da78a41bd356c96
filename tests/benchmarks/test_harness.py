"""What a result says about how it came about."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks.harness import circumstances


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("benchmarks.kernels.__main__", "python -m benchmarks.kernels --op relay_step"),
        ("benchmarks.bench_relay_decode", "python -m benchmarks.bench_relay_decode --op relay_step"),
        (None, "python kernels.py --op relay_step"),
    ],
)
def test_command_names_the_module_and_no_folder_of_this_machine(monkeypatch, module, command):
    main = ModuleType("__main__")
    main.__spec__ = None if module is None else SimpleNamespace(name=module)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [str(Path.cwd() / "kernels.py"), "--op", "relay_step"])
    assert circumstances(torch.device("cpu"))["command"] == command
