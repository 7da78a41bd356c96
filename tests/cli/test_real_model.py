"""From a model that others published to a trained one, all through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROBLEMS = [
    {"question": "What is 2 + 3?", "answer": "5"},
    {"question": "What is 10 - 4?", "answer": "6"},
    {"question": "What is 3 times 3?", "answer": "9"},
    {"question": "How many legs has a cat?", "answer": "4"},
]
STEPS = 2


@pytest.fixture(scope="session", params=["random weights", "published weights"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a SmolLM2; skips where the published weights are not to be had."""
    from smollm2 import FOLDER_VARIABLE, HUB_ID, find_real_model, save_random_model

    folder = tmp_path_factory.mktemp("smollm2")
    if request.param == "random weights":
        save_random_model(folder)
        return str(folder)
    try:
        return find_real_model(folder)
    except (OSError, ValueError) as error:
        pytest.skip(f"{HUB_ID} is not here and the hub does not answer; set {FOLDER_VARIABLE} to its folder ({error})")


def write_config(path: Path, model: dict[str, Any], data: dict[str, Any]) -> Path:
    """A configuration of two optimiser steps of two rows each."""
    settings = {
        "trainer": {
            "accelerator": "cpu",
            "max_steps": STEPS,
            "limit_val_batches": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        },
        "model": model,
        "data": data,
        "report": {"num_router_seeds": 1, "num_problems": 2},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


def stage(name: str, student: str, teacher: str, **options: Any) -> dict[str, Any]:
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}
    shared = {"student": student, "teacher": teacher, "max_completion_tokens": 24, "max_num_seqs": 4}
    return {"class_path": name, "init_args": shared | {"optimizer": optimizer} | options}


def source(name: str, problems: Path, **options: Any) -> dict[str, Any]:
    files = dict.fromkeys(("train", "val", "test"), str(problems))
    counts = dict.fromkeys(("num_train_problems", "num_val_problems", "num_test_problems"), None)
    return {"class_path": name, "init_args": files | counts | {"eval_batch_size": 4} | options}


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_a_published_model_is_warmed_up_filtered_trained_and_exported(in_process, model, tmp_path):
    def command(*arguments: object) -> Any:
        result = in_process(*arguments)
        assert result.exit_code == 0, result.errors
        return result

    problems, kept = tmp_path / "problems.jsonl", tmp_path / "kept.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))

    warmup = write_config(
        tmp_path / "warmup.yaml",
        stage("WarmupModule", model, model),
        source("WarmupDataModule", problems, batch_size=2, max_digit_exponent=0),
    )
    command("fit", "--config", warmup, "--report.enabled", "false")
    command("export", "--ckpt_path", "runs/warmup/checkpoints/last.ckpt", "--output", "warm")
    before, warm = weights(model), weights(tmp_path / "warm")
    assert warm.keys() == before.keys()
    assert any(not torch.equal(before[name], warm[name]) for name in warm)

    command(
        *("filter", "--data", problems, "--num_problems", "null", "--output", kept, "--teacher", model),
        *("--num_samples", 2, "--threshold", 0, "--max_completion_tokens", 24, "--max_num_seqs", 4),
    )
    assert [json.loads(row)["question"] for row in kept.read_text().splitlines()] == [
        row["question"] for row in PROBLEMS
    ]

    grpo = write_config(
        tmp_path / "grpo.yaml",
        stage("GRPOModule", str(tmp_path / "warm"), model, group_size=2, max_call_tokens=4),
        source("PromptDataModule", kept, prompts_per_rollout=2),
    )
    command("fit", "--config", grpo)
    command("export", "--ckpt_path", "runs/grpo/checkpoints/last.ckpt", "--output", "trained")
    rollouts = [json.loads(row) for row in (tmp_path / "runs/grpo/rollouts.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rollouts] == [step for step in range(STEPS) for _ in range(4)]
    assert all(0 < len(row["token_ids"]) <= 24 for row in rollouts)
    summary = json.loads((tmp_path / "runs/grpo/summary.json").read_text())
    assert summary["teacher_alone"]["call_ratio"] == 1.0

    checkpoint = torch.load(tmp_path / "runs/grpo/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    trained = weights(tmp_path / "trained")
    assert all(torch.equal(checkpoint[f"student.{name}"], trained[name]) for name in trained)
    assert all(torch.isfinite(weight).all() for weight in trained.values())
    assert AutoTokenizer.from_pretrained(tmp_path / "trained").chat_template
    answer = command("generate", "What is 2 + 3?", "--student", "./trained", "--teacher", model)
    assert "tokens by the teacher" in answer.errors
