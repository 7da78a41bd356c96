"""`validate` and `test`: figures with intervals, k samples, and a file that is never overwritten."""

from __future__ import annotations

import json
import re

import pytest

from relay_lightning.evaluation.proportion import wilson_interval


def test_test_writes_figures_with_intervals_and_never_over_others(in_process, config, tmp_path):
    folder = tmp_path / "runs" / "grpo"
    first = in_process("test", "--config", config)
    assert first.exit_code == 0, first.errors
    written = (folder / "test.json").read_bytes()
    figures = json.loads(written)
    assert (figures["num_problems"], figures["num_samples"]) == (8, 1)
    assert figures["accuracy_interval_95"] == list(wilson_interval(round(8 * figures["accuracy"]), 8))
    low, high = figures["call_ratio_interval_95"]
    assert low <= figures["call_ratio"] <= high
    assert re.search(r"accuracy \S+%, 95 % interval \S+% to \S+%\n", first.output)
    assert "written to runs/grpo/test.json" in first.output
    assert len(figures["completions"]) == 8
    again = in_process("test", "--config", config)
    assert "written to runs/grpo/test-2.json" in again.output
    assert (folder / "test.json").read_bytes() == written


def test_validation_samples_every_problem_as_often_as_asked(in_process, config, tmp_path):
    sampled = ("--evaluation.num_samples", 4, "--evaluation.temperature", 1.0, "--trainer.limit_val_batches", 1)
    result = in_process("validate", "--config", config, *sampled)
    assert result.exit_code == 0, result.errors
    assert "\nvalidate 32/32 completions" in result.errors
    figures = json.loads((tmp_path / "runs" / "grpo" / "validate.json").read_text())
    assert (figures["num_problems"], figures["num_samples"], figures["temperature"]) == (8, 4, 1.0)
    assert figures["avg@4"] == pytest.approx(figures["pass@1"])
    assert 0 < figures["pass@1"] < figures["pass@2"] < figures["pass@4"]
    assert "val/accuracy" in result.output


def test_several_greedy_samples_are_refused(in_process, config):
    result = in_process("test", "--config", config, "--evaluation.num_samples", 4)
    assert result.exit_code == 2
    assert "set evaluation.temperature above 0" in result.sentence
