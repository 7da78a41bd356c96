"""The trainer's settings through `fit`: each works as Lightning's users expect, or is refused before the first step."""

from __future__ import annotations

import re

import pytest
import torch

from relay_lightning.callbacks.report import Report
from relay_lightning.modules.monitors import TRAINING_METRICS

VALIDATED = ("--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "2")
STOPPING = ("--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor")
SAVING = ("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor")


@pytest.fixture
def fit(in_process, config):
    """Runs two steps without the report."""
    short = ("--trainer.max_steps", "2", "--report.enabled", "false")
    return lambda *arguments: in_process("fit", "--config", config, *short, *arguments)


def checkpoint(tmp_path) -> dict:
    return torch.load(tmp_path / "runs" / "grpo" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trainer.logger", "WandbLogger"], r"Requirement 'wandb.*' not met.*pip install"),
        (
            ["--trainer.logger+", "CSVLogger", "--trainer.logger.save_dir", "x", "--trainer.logger+", "MLFlowLogger"],
            "mlf",
        ),
        (["--trainer.logger", "NoLogger"], r"trainer.logger: 'NoLogger' cannot be used here"),
        (["--trainer.precision", "64-true"], r"trainer.precision is 64-true.* set it to 32-true"),
        (["--trainer.precision", "transformer-engine"], r"Requirement 'transformer_engine.*pip install"),
        (["--trainer.val_check_interval", "0"], r"trainer.val_check_interval must be above 0"),
        ([*VALIDATED, "--trainer.val_check_interval", "100"], r"`val_check_interval` \(100\) must be less"),
        (["--trainer.accumulate_grad_batches", "0"], r"trainer.accumulate_grad_batches must be at least 1"),
        (["--trainer.accumulate_grad_batches", "3"], r"16 completions .* into 2 optimiser steps .* of 3 micro-batches"),
        (
            ["--trainer.callbacks+", "StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"],
            r"trainer.callbacks has StochasticWeightAveraging, which copies the module",
        ),
        (["--trainer.accelerator", "tpu"], r"trainer.accelerator is tpu.* set it to auto or cpu"),
        (["--trainer.max_steps"], r"trainer.max_steps: a value is missing"),
        ([*STOPPING, "nope"], r"EarlyStopping monitors 'nope', which is not logged"),
        ([*STOPPING, "val/accurcy", *VALIDATED], r"'val/accurcy', which is not logged; similar are val/accuracy"),
        ([*SAVING, "val/accuracy"], r"ModelCheckpoint monitors val/accuracy, but trainer.limit_val_batches is 0"),
        (["--optimizer", "SGD"], r"no key 'optimizer'; did you mean 'model.optimizer'"),
        (["--lr_scheduler.T_max", "3"], r"did you mean 'model.lr_scheduler.T_max'"),
        (["--group_size", "3"], r"did you mean 'model.group_size'"),
        (["--model.optimizer.class_path", "nopackage.optim.Adam"], r"the package 'nopackage' is not installed"),
        (["--model.optimizer.init_args.lr", "-1"], r"model.optimizer: Invalid learning rate"),
        (["--data", "lightning.pytorch.demos.boring_classes.BoringDataModule"], r"GRPOModule takes .*PromptDataModule"),
        (["--data", "WarmupDataModule"], r"data is WarmupDataModule, but GRPOModule takes the batches of a PromptData"),
        (["--model", "lightning.pytorch.demos.boring_classes.BoringModel"], r"PromptDataModule.* is BoringModel"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(fit, tmp_path, arguments, sentence):
    result = fit(*arguments)
    assert result.exit_code == 2, result.errors
    assert re.search(sentence, result.sentence)
    assert not (tmp_path / "runs" / "grpo" / "config.yaml").exists()


def test_anomalies_can_be_looked_for(fit, tmp_path):
    result = fit("--trainer.detect_anomaly")  # a flag without a value is true
    assert result.exit_code == 0, result.errors
    assert checkpoint(tmp_path)["global_step"] == 2


@pytest.mark.parametrize("flag", ["--trainer.barebones", "--trainer.fast_dev_run"])
def test_trials_leave_nothing_behind(fit, tmp_path, flag):
    result = fit(flag)
    assert result.exit_code == 0, result.errors
    assert not (tmp_path / "runs").exists()


def test_plateau_schedule_follows_a_validation_metric_once_a_validation(fit, tmp_path):
    plateau = "--model.lr_scheduler.init_args."
    result = fit(
        *("--trainer.max_steps", 4, "--trainer.num_sanity_val_steps", 0, *VALIDATED),
        *("--model.lr_scheduler.class_path", "lightning.pytorch.cli.ReduceLROnPlateau"),
        *(f"{plateau}monitor", "val/accuracy", f"{plateau}mode", "max"),
    )
    assert result.exit_code == 0, result.errors
    (state,) = checkpoint(tmp_path)["lr_schedulers"]
    assert state["last_epoch"] == 2  # at steps 2 and 4


def test_own_module_and_data_train_when_they_are_lightnings(in_process, tmp_path):
    boring = "lightning.pytorch.demos.boring_classes.Boring"
    limits = ("--trainer.max_steps", 2, "--trainer.limit_val_batches", 0)
    result = in_process("fit", "--model", f"{boring}Model", "--data", f"{boring}DataModule", *limits)
    assert result.exit_code == 0, result.errors
    assert (tmp_path / "runs" / "boringmodel" / "checkpoints" / "last.ckpt").exists()


def test_own_progress_bar_replaces_ours(fit):
    result = fit("--trainer.callbacks+", "TQDMProgressBar")
    assert result.exit_code == 0, result.errors


def test_a_callback_whose_default_is_an_enumeration_is_written_to_the_configuration(fit, tmp_path):
    result = fit("--trainer.callbacks+", "Timer", "--trainer.callbacks.duration", "00:12:00:00")
    assert result.exit_code == 0, result.errors
    assert "interval: step" in (tmp_path / "runs" / "grpo" / "config.yaml").read_text()


def test_all_logged_metrics_are_known_by_name(fit, monkeypatch):
    logged: set[str] = set()
    known: set[str] = set()

    def remember(_, trainer, module):
        logged.update(trainer.callback_metrics)
        known.update(TRAINING_METRICS, module.validation_metrics)

    monkeypatch.setattr(Report, "on_fit_end", remember)
    result = fit(
        *VALIDATED, "--model.beta", "0.1", "--model.rollout_is_mode", "token_mask", "--model.old_log_probs", "recompute"
    )
    assert result.exit_code == 0, result.errors
    assert {"loss", "kl", "val/accuracy"} <= logged
    assert {name for name in logged if not name.startswith("lr-")} <= known
