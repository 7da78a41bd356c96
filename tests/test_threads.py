"""Threads of a CPU: small models decode with one, waiting ones sleep, and what the user chose stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_models import random_model
from small_vocabulary import VOCAB_SIZE, small_protocol

from relay_lightning import threads
from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.types import Prompt

SWITCHES = """
import sys, time
from pathlib import Path
import torch
from relay_lightning.threads import yield_cores

torch.set_num_threads(2)
values = torch.ones(1 << 17).exp_()
team = {path for path in Path("/proc/self/task").iterdir()} - {Path(f"/proc/self/task/{__import__('os').getpid()}")}
yield_cores() if sys.argv[1] == "yield" else None


def num_switches():
    lines = [line for path in team for line in (path / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))


before = num_switches()
for _ in range(100):
    values.add_(1)
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass
print(num_switches() - before)
"""


def count_switches(mode: str, **settings: str) -> int:
    """How often the second of two threads slept while the first one computed a hundred times and worked in between."""
    names = (*threads.NUM_THREADS_SETTINGS, *threads.WAIT_SETTINGS)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", SWITCHES, mode]
    run = subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=True)
    return int(run.stdout)


needs_team = pytest.mark.skipif(
    threads.count_cores() == 1 or not Path("/proc/self/task").exists(), reason="needs two cores and Linux"
)


@needs_team
def test_waiting_threads_sleep_though_pytorch_is_imported_already():
    assert count_switches("yield") > 50


@needs_team
def test_the_users_way_of_waiting_stays():
    """Threads that spin for seconds, as this setting has them, do not sleep between two operations."""
    assert count_switches("yield", GOMP_SPINCOUNT="1000000000") < 50


@pytest.fixture
def four_cores(monkeypatch):
    before = torch.get_num_threads()
    for name in threads.NUM_THREADS_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "count_cores", lambda: 4)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def threads_of_a_step() -> set[int]:
    model = random_model("qwen3", VOCAB_SIZE)
    engine = RelayEngine(LocalModel(model), None, small_protocol())
    request, seen = RelayRequest(Prompt(0, (4,)), SamplingParams(1), policy="teacher_free"), set()
    engine.acquire()  # Runs a pass that finds the size of keys and values.
    model.get_input_embeddings().register_forward_hook(lambda *_: seen.add(torch.get_num_threads()))
    engine.generate([request])
    return seen


@pytest.mark.usefixtures("four_cores")
def test_a_small_model_decodes_with_one_thread_and_leaves_the_number_as_it_was():
    assert threads_of_a_step() == {1}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_cores")
def test_a_large_model_decodes_with_all_threads(monkeypatch):
    monkeypatch.setattr(threads, "FEWEST_PARAMETERS", 10)
    assert threads_of_a_step() == {4}


@pytest.mark.usefixtures("four_cores")
def test_a_number_of_threads_that_the_user_chose_stays(monkeypatch):
    torch.set_num_threads(3)
    assert threads_of_a_step() == {3}
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads_of_a_step() == {4}


@pytest.mark.usefixtures("four_cores")
def test_the_number_of_threads_comes_back_when_a_step_fails():
    with pytest.raises(ValueError, match="stop"), threads.decode_threads(1):
        raise ValueError("stop")
    assert torch.get_num_threads() == 4
