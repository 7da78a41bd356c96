"""SIGTERM and Ctrl-C at every moment of a run: it stops there, keeps what it has, and goes on to the same end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from run_state import assert_same_run, checkpoint

from relay_lightning.relay.engine import RelayEngine

STEPS = 4
TERMINATED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT


@pytest.fixture
def validated(config: Path) -> Path:
    """Four steps of two micro-batches, a validation after every second one, and no checkpoint before the last step."""
    settings = yaml.safe_load(config.read_text())
    settings["trainer"] |= {"max_steps": STEPS, "accumulate_grad_batches": 2, "limit_val_batches": 1}
    settings["trainer"] |= {"val_check_interval": 4, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    settings["checkpoint"]["every_n_train_steps"] = 1000
    settings["report"]["num_problems"] = 2
    config.write_text(yaml.safe_dump(settings))
    return config


@pytest.fixture
def whole(in_process, validated, tmp_path) -> Path:
    """The folder of the run that nothing stopped."""
    result = in_process("fit", "--config", validated, "--run_dir", "whole")
    assert result.exit_code == 0, result.errors
    return tmp_path / "whole"


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """decodes(n): the policies of all decodes from then on; a SIGTERM when the first completion of the n-th is done."""

    def record(signal_in: int = 0) -> list[str]:
        begun: list[str] = []
        original = RelayEngine.generate

        def generate(self, requests, on_progress=None):
            begun.append(str(requests[0].policy))
            number = len(begun)

            def progress(num_finished: int) -> None:
                if number == signal_in:
                    os.kill(os.getpid(), signal.SIGTERM)
                if on_progress is not None:
                    on_progress(num_finished)

            return original(self, requests, progress)

        monkeypatch.setattr(RelayEngine, "generate", generate)
        return begun

    return record


def stop(moment: str, step: int, signal_name: str = "SIGTERM") -> list[str]:
    """Arguments that send a signal in a hook of Lightning."""
    callback = {"class_path": "signal_at.SignalAt", "init_args": {"moment": moment, "step": step}}
    callback["init_args"]["signal_name"] = signal_name
    return ["--trainer.callbacks", json.dumps([callback])]


@pytest.mark.parametrize(
    ("moment", "step", "kept_step"),
    [
        pytest.param("on_after_backward", 1, 1, marks=pytest.mark.slow),
        ("on_validation_batch_start", 2, 2),
        pytest.param("on_before_zero_grad", 3, 3, marks=pytest.mark.slow),
        pytest.param("on_before_optimizer_step", 1, 1, marks=pytest.mark.slow),
        pytest.param("on_validation_end", 2, 2, marks=pytest.mark.slow),
        pytest.param("on_validation_batch_start", STEPS, STEPS, marks=pytest.mark.slow),
        pytest.param("on_train_epoch_end", STEPS, STEPS, marks=pytest.mark.slow),
        pytest.param("on_train_end", STEPS, STEPS, marks=pytest.mark.slow),
    ],
)
def test_stopped_run_keeps_its_last_step_and_ends_as_one_never_stopped(
    in_process, validated, whole, tmp_path, moment, step, kept_step
):
    arguments = ["fit", "--config", validated, "--run_dir", "stopped"]
    stopped = in_process(*arguments, *stop(moment, step))
    assert stopped.exit_code == TERMINATED, stopped.errors
    assert f"Stopped by SIGTERM after step {kept_step}: the checkpoint is written" in stopped.sentence
    assert checkpoint(tmp_path / "stopped")["global_step"] == kept_step
    resumed = in_process(*arguments, "--ckpt_path", "last")
    assert resumed.exit_code == 0, resumed.errors
    assert_same_run(whole, tmp_path / "stopped")


def test_rollout_is_given_up_at_once_when_a_signal_arrives_in_it(in_process, validated, decodes, tmp_path):
    arguments = ["fit", "--config", validated, "--run_dir", "stopped", "--report.enabled", "false"]
    begun = decodes(2)  # the rollout of the third step, or a validation before it
    stopped = in_process(*arguments)
    assert stopped.exit_code == TERMINATED
    assert len(begun) == 2
    assert checkpoint(tmp_path / "stopped")["global_step"] == 2


@pytest.mark.parametrize("is_resumed", [False, True])
def test_measurements_before_training_are_kept_when_a_signal_arrives_in_one(
    in_process, validated, decodes, tmp_path, is_resumed
):
    folder = tmp_path / "stopped"
    arguments = ["fit", "--config", validated, "--run_dir", "stopped", "--report.routers", "false"]
    decodes(2)
    stopped = in_process(*arguments)
    assert stopped.exit_code == TERMINATED
    assert "before the first step was done: finished measurements are kept" in stopped.sentence
    assert list(json.loads((folder / "baseline.json").read_text())["results"]) == ["student_alone"]
    begun = decodes()
    result = in_process(*arguments, *(["--ckpt_path", "last"] if is_resumed else []))
    assert result.exit_code == 0, result.errors
    assert begun[:2] == ["teacher_only", "command"]
    assert "student_alone" in json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
def test_report_measures_only_the_rest_when_it_was_stopped(in_process, validated, decodes, tmp_path, whole):
    arguments = ["fit", "--config", validated, "--run_dir", "stopped"]
    begun = decodes(0)
    in_process("fit", "--config", validated, "--run_dir", "counted")
    num_decodes = len(begun)
    decodes(num_decodes - 1)  # the last but one: of the routers
    stopped = in_process(*arguments)
    assert stopped.exit_code == TERMINATED
    assert (
        f"in the report after step {STEPS}: the checkpoint and the finished measurements are kept" in stopped.sentence
    )
    begun = decodes()
    assert in_process(*arguments, "--ckpt_path", "last").exit_code == 0
    assert len(begun) == 2
    assert_same_run(whole, tmp_path / "stopped")


def test_measurements_of_other_weights_are_not_taken_over(in_process, validated, decodes, small_pair):
    arguments = ["fit", "--config", validated, "--run_dir", "stopped", "--report.routers", "false"]
    decodes(3)
    assert in_process(*arguments).exit_code == TERMINATED
    begun = decodes()
    arguments += ["--model.student", small_pair.teacher, "--trainer.max_steps", "1"]
    assert in_process(*arguments).exit_code == 0
    assert begun[:3] == ["teacher_free", "teacher_only", "command"]


def test_ctrl_c_while_models_are_loaded_is_one_line(in_process, validated):
    result = in_process("fit", "--config", validated, "--run_dir", "stopped", *stop("setup", 0, "SIGINT"))
    assert result.exit_code == INTERRUPTED
    assert result.sentence.startswith("error: Stopped by SIGINT before the first step")
    assert in_process("fit", "--config", validated, "--run_dir", "stopped", "--report.enabled", "false").exit_code == 0


def test_evaluation_stops_when_a_signal_arrives(in_process, validated):
    result = in_process("test", "--config", validated, *stop("on_test_batch_start", 0))
    assert result.exit_code == TERMINATED
    assert result.sentence == "error: Stopped by SIGTERM."
