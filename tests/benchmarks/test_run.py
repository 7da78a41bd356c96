"""A run of the kernel benchmark: the gate before the clock, rivals that fail, and what is written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import harness
from benchmarks.kernels import __main__ as program
from benchmarks.kernels import clock, relay_advantages, run
from benchmarks.kernels.gate import Check
from benchmarks.kernels.outcome import OURS
from benchmarks.kernels.run import run_case
from benchmarks.kernels.target import Target

CPU = Target(torch.device("cpu"), "reference", torch.Generator().manual_seed(0))
OPS = program.OPS
REFERENCES_FOR_DEVICES = ("decode_attention", "linear_log_probs")
"""Ops whose references look at values or at the device's mixed precision."""


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    for name, value in (("BUDGET_S", 0.0), ("MIN_SAMPLES", 2), ("NUM_WARMUPS", 1)):
        monkeypatch.setattr(clock, name, value)


def toy_case(**changes):
    """A case without compiled rivals."""
    case = relay_advantages.cases(CPU)[0]
    return replace(case, **{"rivals": {"reference": relay_advantages.reference}, **changes})


def test_nothing_is_timed_when_a_check_is_red():
    def never(_):
        raise AssertionError("timed in spite of a red gate")

    outcome = run_case(toy_case(check=lambda _: [Check("x", 1.0, 0.5)], ours=never, rivals={"other": never}), CPU, 1e9)
    assert not outcome.is_green
    assert outcome.contestants == outcome.failed == {}


def test_a_rival_that_fails_is_noted_and_costs_the_others_nothing():
    def broken(_):
        raise ImportError("built for another PyTorch\nlong story")

    case = toy_case()
    outcome = run_case(replace(case, rivals={"broken": broken, **case.rivals}), CPU, 1e9)
    assert outcome.failed == {"broken": "ImportError: built for another PyTorch"}
    assert set(outcome.contestants) == {OURS, "reference"}


def test_no_time_counts_when_the_inputs_are_used_up():
    with pytest.raises(RuntimeError, match="relay_advantages"):
        run_case(toy_case(is_intact=lambda _: False), CPU, 1e9)


@pytest.mark.parametrize("op", OPS)
def test_every_contestant_but_the_compiled_runs_at_the_small_shapes(op):
    for case in OPS[op](CPU):
        plain = {name: work for name, work in case.rivals.items() if name != "torch.compile"}
        outcome = run_case(replace(case, rivals=plain), CPU, 1e9)
        assert outcome.is_green, outcome.checks
        assert outcome.failed == {}
        assert set(outcome.contestants) == {OURS, *case.yardsticks, *plain}


@pytest.mark.parametrize("op", OPS)
def test_inputs_and_products_fit_each_other_at_the_full_shapes(op):
    """On tensors without storage, so that no GPU is needed."""
    for case in OPS[op](Target(torch.device("meta"), "reference")):
        inputs = case.make_inputs()
        works = {**case.yardsticks, **case.rivals}
        # Compiling needs the device.
        skipped = {"torch.compile"} | ({"reference"} if op in REFERENCES_FOR_DEVICES else set())
        assert works.keys() - skipped
        for name in works.keys() - skipped:
            works[name](inputs)


def run_program(monkeypatch, tmp_path, capsys, cases):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(run, "SMALL_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(program, "OPS", {"toy": lambda _: cases})
    monkeypatch.setattr(sys, "argv", ["benchmarks/kernels", "--device", "cpu", "--backend", "reference"])
    status = program.main()
    captured = capsys.readouterr()
    [path] = tmp_path.iterdir()
    return status, captured, [json.loads(line) for line in path.read_text().splitlines()]


def test_result_is_the_last_line_and_in_the_file(monkeypatch, tmp_path, capsys):
    status, captured, written = run_program(monkeypatch, tmp_path, capsys, [toy_case()])
    assert status == 0
    assert json.loads(captured.out.splitlines()[-1]) == written[0]
    assert written[0]["contestants"][OURS]["p50_s"] > 0
    assert {"commit", "torch", "device", "command"} <= written[0].keys()
    assert "a CPU: small shapes" in captured.out


def test_an_op_without_the_backend_that_is_asked_for_is_skipped_with_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    cpu = torch.device("cpu")
    assert program.measure_op("relay_advantages", "native", cpu, 1e9) == []
    assert capsys.readouterr().out == (
        "\nrelay_advantages is skipped: backend='native' of relay_advantages cannot run: the op has no native"
        " implementation\n"
    )
    assert not list(tmp_path.iterdir())


def test_process_fails_and_the_next_cases_still_run_when_a_gate_is_red(monkeypatch, tmp_path, capsys):
    def raises(_):
        raise RuntimeError("illegal memory access")

    red = toy_case(setting="red", check=lambda _: [Check("x", 1.0, 0.5)])
    cases = [red, toy_case(setting="broken", check=raises), toy_case()]
    status, captured, written = run_program(monkeypatch, tmp_path, capsys, cases)
    assert status == 1
    assert [line["gate"] for line in written] == ["red", "green"]
    assert written[0]["contestants"] == {}
    assert captured.err.count("red: relay_advantages") == 2
