"""`fit` through the command line: what a run leaves, and that no run is ever overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from relay_lightning.callbacks.rollout_writer import decode_runs
from relay_lightning.cli import RelayCLI
from relay_lightning.modules.sharded_strategy import ShardedStrategy

STEPS, ROLLOUT_SIZE = 6, 16


@pytest.fixture
def run_folder(in_process, config, tmp_path) -> Path:
    result = in_process("fit", "--config", config)
    assert result.exit_code == 0, result.errors
    return tmp_path / "runs" / "grpo"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def test_run_folder_holds_everything_the_run_made(run_folder):
    assert list((run_folder / "tensorboard").glob("events.out.tfevents.*"))
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["model"]["init_args"]["group_size"] == 4
    rollouts = rows(run_folder / "rollouts.jsonl")
    assert [row["step"] for row in rollouts] == [step for step in (0, 2, 4) for _ in range(ROLLOUT_SIZE)]
    assert all(len(decode_runs(row["token_source"])) == len(row["token_ids"]) > 0 for row in rollouts)
    checkpoint = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STEPS
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["teacher_alone"]["call_ratio"] == 1.0
    assert summary["student_alone"]["call_ratio"] == summary["teacher_free_after"]["call_ratio"] == 0.0
    for name in ("student_alone", "teacher_alone", "relay_before", "relay_after", "teacher_free_after"):
        assert summary[name]["num_problems"] == 8
    assert {"gap_recovered", "teacher_token_reduction", "wall_s", "versions", "seed"} <= summary.keys()
    assert "teacher_token_share" in summary["random_query_router_matched"]
    assert "accuracy" in summary["random_token_router_same_budget"]


def test_the_report_measures_without_the_limit_of_training_when_it_is_told_to(in_process, config, tmp_path):
    """Calls ask for 1 to 4 tokens. A limit of 1 that bound the measurement would deliver one token a call."""
    delivered = []
    for run, limit in (("cut", "auto"), ("free", "null")):
        result = in_process(
            *("fit", "--config", config, "--run_dir", run, "--trainer.max_steps", 1, "--model.max_call_tokens", 1),
            *("--report.sampled", "true", "--report.routers", "false", "--report.max_call_tokens", limit),
        )
        assert result.exit_code == 0, result.errors
        sampled = json.loads((tmp_path / run / "summary.json").read_text())["relay_before_sampled"]
        assert sampled["requested_tokens_per_call"] > 1
        delivered.append(sampled["mean_teacher_tokens"] / sampled["calls_per_completion"])
    assert delivered[0] == 1 < delivered[1]


def test_run_is_refused_and_kept_when_its_folder_is_taken(run_folder, in_process, config):
    before = {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()}
    result = in_process("fit", "--config", config)
    assert result.exit_code == 2
    assert "--ckpt_path last, or start in another folder with --run_dir runs/grpo-2" in result.sentence
    assert {path: path.read_bytes() for path in run_folder.rglob("*") if path.is_file()} == before


def test_saved_configuration_reruns_the_run(run_folder, in_process, tmp_path):
    result = in_process("fit", "--config", run_folder / "config.yaml", "--run_dir", "again")
    assert result.exit_code == 0, result.errors
    assert (tmp_path / "again" / "rollouts.jsonl").read_bytes() == (run_folder / "rollouts.jsonl").read_bytes()
    first, second = (weights(folder / "checkpoints" / "last.ckpt") for folder in (run_folder, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_finished_run_is_trained_further_when_it_gets_more_steps(run_folder, in_process, config, tmp_path):
    further = in_process("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", 8)
    assert further.exit_code == 0, further.errors
    whole = in_process("fit", "--config", config, "--run_dir", "whole", "--trainer.max_steps", 8)
    assert whole.exit_code == 0, whole.errors
    assert (run_folder / "rollouts.jsonl").read_bytes() == (tmp_path / "whole" / "rollouts.jsonl").read_bytes()
    first, second = (weights(folder / "checkpoints" / "last.ckpt") for folder in (run_folder, tmp_path / "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_trainer_subcommands_take_the_same_configuration(run_folder, in_process):
    arguments = ["--config", run_folder / "config.yaml", "--ckpt_path", "last"]
    validated = in_process("validate", *arguments, "--trainer.limit_val_batches", 1)
    assert validated.exit_code == 0, validated.errors
    assert "val/accuracy" in validated.output
    tested = in_process("test", *arguments)
    assert tested.exit_code == 0, tested.errors
    assert "test/accuracy" in tested.output


def test_predictions_are_written_once(run_folder, in_process, config):
    arguments = ["--config", config, "--ckpt_path", "last"]
    predicted = in_process("predict", *arguments)
    assert predicted.exit_code == 0, predicted.errors
    predictions = rows(run_folder / "predictions.jsonl")
    assert [row["prompt_id"] for row in predictions] == list(range(8))
    assert all(row["text"] and len(decode_runs(row["token_source"])) == len(row["token_ids"]) for row in predictions)
    again = in_process("predict", *arguments)
    assert again.exit_code == 2
    assert "predictions.jsonl exists already and is not overwritten" in again.sentence
    assert rows(run_folder / "predictions.jsonl") == predictions


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(in_process, config, tmp_path):
    result = in_process(
        "fit", "--config", config, "--report.enabled", "false", "--model.optimizer.init_args.lr", "1e30"
    )
    assert result.exit_code == 2
    assert "training stops before it reaches the weights" in result.sentence
    kept = weights(tmp_path / "runs" / "grpo" / "checkpoints" / "last.ckpt")
    assert all(torch.isfinite(weight).all() for weight in kept.values())


@pytest.mark.parametrize("name", ["fsdp", "fsdp2"])
def test_sharding_is_the_one_that_decodes_by_either_name(in_process, config, monkeypatch, name):
    strategies = []
    monkeypatch.setattr(RelayCLI, "_run_subcommand", lambda cli, _: strategies.append(cli.trainer.strategy))
    result = in_process("fit", "--config", config, "--trainer.strategy", name)
    assert result.exit_code == 0, result.errors
    assert [type(strategy) for strategy in strategies] == [ShardedStrategy]
