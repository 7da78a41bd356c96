"""Bars and their tables, on outcomes written by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.kernels import decode_attention, linear_log_probs, relay_advantages, relay_step
from benchmarks.kernels.case import COPY
from benchmarks.kernels.clock import Timing
from benchmarks.kernels.gate import Check
from benchmarks.kernels.outcome import OURS, Measured, Outcome
from benchmarks.kernels.report import print_outcome
from benchmarks.kernels.target import Target

GPU = Target(torch.device("cuda"), "reference")
COPY_BYTES_PER_S = 4e12


def outcome(case, *, is_full=True, is_green=True, **contestants):
    """Contestants are (microseconds, extra MiB)."""
    measured = {
        name.replace("_", " "): Measured(
            Timing(us * 1e-6, us * 1e-6, us * 1e-6, "graph", 5), None if mib is None else int(mib * 2**20)
        )
        for name, (us, mib) in contestants.items()
    }
    if "ours" in measured:
        measured[OURS] = measured.pop("ours")
    checks = [Check("x", 0.0 if is_green else 1.0, 0.5)]
    return Outcome(case, "triton", "bfloat16", is_full, COPY_BYTES_PER_S, checks, contestants=measured)


def words(found):
    return [bar.verdict(found).word for bar in found.case.bars]


def case_of(op, setting, **shape):
    return next(
        case for case in op.cases(GPU) if case.setting.startswith(setting) and shape.items() <= case.shape.items()
    )


@pytest.mark.parametrize(("us", "word"), [(6.9, "met"), (7.0, "not met")])
def test_relay_step_must_reach_its_share_of_the_copy(us, word):
    """19.4 MB at 4 TB/s take 4.86 us, and 6.95 us at 70 % of that rate."""
    assert words(outcome(case_of(relay_step, "temperature", B=64), ours=(us, 0))) == [word]


def test_cut_step_is_held_to_the_whole_step_and_to_the_fastest_rival():
    case = case_of(relay_step, "top_k", B=256)
    assert words(outcome(case, ours=(40, 0), temperature_only=(20, 0), reference=(90, 0))) == ["met", "met"]
    slow = replace(case, rivals={**case.rivals, "quick": None})
    found = outcome(slow, ours=(60, 0), temperature_only=(20, 0), reference=(90, 0), quick=(50, 0))
    assert words(found) == ["not met", "not met"]


def test_linear_log_probs_is_held_to_bare_products_memory_and_liger():
    forward = case_of(linear_log_probs, "forward")
    assert words(outcome(forward, ours=(8000, 100), bare_GEMM=(6450, 2500))) == ["met", "met"]
    assert words(outcome(forward, ours=(8100, 300), bare_GEMM=(6450, 2500))) == ["not met", "not met"]
    both = case_of(linear_log_probs, "forward and")
    gemms = {"4_bare_GEMMs": (25_800, 2500)}
    assert words(outcome(both, ours=(30_000, 950), **gemms)) == ["met", "met", "open", "open"]
    found = outcome(both, ours=(30_000, 950), Liger=(40_000, 900), **gemms)
    assert words(found) == ["met", "met", "met", "not met"]


def test_bars_are_open_when_the_shape_is_not_the_full_one():
    case = case_of(relay_advantages, "difficulty")
    found = outcome(case, ours=(3, 0), reference=(60, 0))
    assert words(found) == ["open", "met", "met"]  # Nobody counted the launches.
    found.num_launches = 2
    assert words(found) == ["not met", "met", "met"]
    found.is_full = False
    assert words(found) == ["open"] * 3


def test_bytes_are_those_of_the_readmes():
    assert case_of(relay_step, "temperature", B=64).num_bytes == 19_447_808
    assert case_of(decode_attention, "one token").num_bytes == 1_073_741_824 + 2 * 64 * 8 * 128 * 2
    gemm = case_of(linear_log_probs, "forward")
    assert gemm.num_flops == 2 * 8192 * 2048 * 151_936
    assert gemm.ceiling != COPY


def test_no_speed_is_printed_when_the_gate_is_red(capsys):
    case = case_of(decode_attention, "one token")
    print_outcome(outcome(case, is_green=False))
    text = capsys.readouterr().out
    assert "RED" in text
    assert "us" not in text.split()
    print_outcome(outcome(case, ours=(300, 1), reference=(9000, 2000)))
    text = capsys.readouterr().out
    assert "300.00" in text
    assert "89.5" in text  # Of the 268.5 us that the bytes take at 4 TB/s.
    assert "not met" not in text


def test_figures_are_json_when_an_error_is_infinite():
    found = outcome(case_of(decode_attention, "one token"))
    found.checks = [Check("output", float("inf"), 0.0)]
    figures = json.loads(json.dumps(found.figures(), allow_nan=False))
    assert figures["gate"] == "red"
    assert figures["contestants"] == {}
