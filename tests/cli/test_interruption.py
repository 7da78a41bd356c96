"""Runs that are killed, told to stop, or run out of disk, each as a process of its own through the command line."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from run_state import assert_same_run, checkpoint, summary

pytestmark = pytest.mark.slow
STEPS = 8
PATIENCE_S = 120


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the condition holds; fails when the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def modified_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def num_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@pytest.fixture
def whole(start, config, tmp_path) -> Path:
    """A run that nothing interrupted: a process like the interrupted ones, because the last bit of a sum depends on the
    number of threads."""
    process = start("fit", "--config", config, "--run_dir", "whole", "--trainer.max_steps", STEPS)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    return tmp_path / "whole"


@pytest.mark.parametrize("seed", range(3))
def test_run_killed_at_random_moments_ends_as_one_never_interrupted(whole, start, config, tmp_path, seed):
    folder, rng = tmp_path / "killed", random.Random(seed)
    arguments = ["fit", "--config", config, "--run_dir", "killed", "--trainer.max_steps", STEPS, "--ckpt_path", "last"]
    saved = folder / "checkpoints" / "last.ckpt"
    for _ in range(3):
        known = modified_ns(saved)
        process = start(*arguments)
        # a run that was killed late may end before it saves again
        wait_for(lambda known=known, run=process: modified_ns(saved) != known or run.poll() is not None, process)
        time.sleep(rng.random() * 0.1)  # somewhere in the steps after it: in a rollout, an update, a log, or a write
        process.kill()
        process.communicate()
    process = start(*arguments)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert_same_run(whole, folder)


def test_run_killed_in_its_final_report_makes_it_up(whole, start, config):
    figures = summary(whole)
    (whole / "summary.json").unlink()
    process = start(
        *("fit", "--config", config, "--run_dir", "whole", "--trainer.max_steps", STEPS, "--ckpt_path", "last")
    )
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert summary(whole) == figures


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_answered_by_a_checkpoint_and_a_clear_line(whole, start, config, tmp_path, signal_number):
    folder = tmp_path / "stopped"
    # no checkpoint but the one that the signal asks for
    arguments = ["--config", config, "--run_dir", "stopped", "--trainer.max_steps", STEPS]
    process = start("fit", *arguments, "--checkpoint.every_n_train_steps", 1000)
    wait_for(lambda: num_bytes(folder / "rollouts.jsonl") > 0, process)
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + signal_number
    assert "Traceback" not in errors
    assert f"Stopped by {signal_number.name} after step" in errors.strip().splitlines()[-1]
    assert 0 < checkpoint(folder)["global_step"] < STEPS
    process = start("fit", *arguments, "--ckpt_path", "last")
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    assert_same_run(whole, folder)


def test_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(in_process, start, config, tmp_path):
    folder = tmp_path / "runs" / "grpo"
    first = in_process("fit", "--config", config, "--report.enabled", "false", "--trainer.max_steps", 2)
    assert first.exit_code == 0, first.errors
    half = num_bytes(folder / "checkpoints" / "last.ckpt") // 2
    process = start(
        *("fit", "--config", config, "--report.enabled", "false", "--ckpt_path", "last"),
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (half, half)
        ),  # stands in for a disk that fills up
    )
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert "the one before it is intact" in errors.strip().splitlines()[-1]
    assert checkpoint(folder)["global_step"] == 2


def test_folder_of_a_running_run_is_refused(start, in_process, config, tmp_path):
    process = start("fit", "--config", config, "--run_dir", "busy", "--trainer.max_steps", 1000)
    try:
        wait_for((tmp_path / "busy" / "checkpoints" / "last.ckpt").exists, process)
        result = in_process("fit", "--config", config, "--run_dir", "busy", "--ckpt_path", "last")
        assert result.exit_code == 2
        assert "is still running" in result.sentence
    finally:
        process.kill()
        process.communicate()


def test_two_processes_train_and_report_together(in_process, start, config, tmp_path):
    arguments = ["--trainer.strategy", "ddp", "--trainer.devices", 2, "--trainer.accelerator", "cpu"]
    process = start("fit", "--config", config, "--run_dir", "both", *arguments)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    folder = tmp_path / "both"
    for rank in ("", "-1"):
        assert len((folder / f"rollouts{rank}.jsonl").read_text().splitlines()) == 24
    alone = in_process("fit", "--config", config, "--run_dir", "alone")
    assert alone.exit_code == 0, alone.errors
    both, one = (json.loads((path / "summary.json").read_text()) for path in (folder, tmp_path / "alone"))
    for name in ("student_alone", "teacher_alone", "relay_before"):
        assert both[name] == one[name]
