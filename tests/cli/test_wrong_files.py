"""Files that are not what a command needs: one sentence that says what they are, before anything is loaded."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from relay_lightning.callbacks.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from relay_lightning.callbacks.config_writer import CONFIG_KEY


@pytest.fixture
def run_folder(in_process, config, tmp_path) -> Path:
    """A finished run of one step."""
    arguments = ["--report.enabled", "false", "--trainer.max_steps", 1]
    result = in_process("fit", "--config", config, *arguments)
    assert result.exit_code == 0, result.errors
    return tmp_path / "runs" / "grpo"


def edited(small_pair, folder: Path, **changes: torch.Tensor | None) -> str:
    """A copy of the student with other weights; None leaves one out."""
    shutil.copytree(small_pair.student, folder)
    weights = load_file(folder / "model.safetensors") | changes
    save_file({name: value for name, value in weights.items() if value is not None}, folder / "model.safetensors")
    return str(folder)


def truncated(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


WEIGHT = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({WEIGHT: None}, rf"lack the weight {WEIGHT}, which does not fit its config.json"),
        ({WEIGHT: torch.ones(3, 4)}, rf"have another shape for the weight {WEIGHT}"),
        ({"extra.weight": torch.ones(3)}, r"hold the weight extra.weight, which does not fit"),
        ({"model.embed_tokens.weight": None, "lm_head.weight": None}, r"lack the weight"),
    ],
    ids=["missing", "shape", "unexpected", "both of a tied pair"],
)
def test_weights_that_do_not_fit_are_named(in_process, config, small_pair, tmp_path, changes, sentence):
    student = edited(small_pair, tmp_path / "edited", **changes)
    result = in_process("fit", "--config", config, "--model.student", student)
    assert result.exit_code == 2
    assert re.search(sentence, result.sentence)


@pytest.mark.parametrize("num_bytes", [0, 5, 200, 9000])
def test_truncated_safetensors_are_named(in_process, config, small_pair, tmp_path, num_bytes):
    folder = Path(edited(small_pair, tmp_path / "edited"))
    truncated(folder / "model.safetensors", num_bytes)
    for role in ("student", "teacher"):
        result = in_process("fit", "--config", config, f"--model.{role}", folder, "--report.enabled", "false")
        assert result.exit_code == 2
        assert re.search(r"model.safetensors of the model '.*edited' is damaged: ", result.sentence)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_files_beside_the_weights_are_one_sentence(in_process, config, small_pair, tmp_path, name):
    folder = Path(edited(small_pair, tmp_path / "edited"))
    truncated(folder / name, 30)
    result = in_process("fit", "--config", config, "--model.student", folder)
    assert result.exit_code == 2
    assert re.search(r"'.*edited' cannot be opened. Reason: ", result.sentence)


@pytest.mark.parametrize(
    ("role", "name", "sentence"),
    [
        ("student", "last.ckpt", r"'last.ckpt' is a file: the checkpoint of a run; .* export --ckpt_path last.ckpt"),
        ("student", "nope.ckpt", r"'nope.ckpt' does not exist"),
        ("student", "model.gguf", r"'model.gguf' is a file in GGUF format, which is not supported"),
        ("student", "ggufs", r"'ggufs' holds no config.json. It holds a GGUF file"),
        ("student", "some_run", r"'some_run' is that of a run, .* export --ckpt_path some_run/checkpoints/last.ckpt"),
        ("student", "some_run/checkpoints", r"export --ckpt_path some_run/checkpoints/last.ckpt"),
        (
            "teacher",
            "http://localhost:8000/v1",
            r"'http://localhost:8000/v1' is a URL; name a local folder or a hub id",
        ),
        ("teacher", "model.gguf/x/y", r"'model.gguf/x/y' does not exist"),
    ],
)
def test_what_is_no_model_is_called_what_it_is(in_process, config, tmp_path, role, name, sentence):
    for path in ("last.ckpt", "model.gguf", "ggufs/model.gguf", "some_run/checkpoints/last.ckpt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    result = in_process("fit", "--config", config, f"--model.{role}", name)
    assert result.exit_code == 2
    assert re.search(sentence, result.sentence)


@pytest.mark.parametrize("run_dir", ["taken", "taken/below", "/proc/below", "/dev/null"])
def test_a_run_folder_that_cannot_be_written_is_named(in_process, config, tmp_path, run_dir):
    (tmp_path / "taken").touch()
    result = in_process("fit", "--config", config, "--run_dir", run_dir)
    assert result.exit_code == 2
    assert f"The run folder {run_dir} cannot be written: " in result.sentence


def test_outputs_that_cannot_be_written_are_named(in_process, run_folder, small_pair, tmp_path):
    (tmp_path / "taken").touch()
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    exported = in_process("export", "--ckpt_path", checkpoint, "--output", "taken/below")
    filtered = in_process("filter", "--output", "taken/below", "--data", small_pair.problems, "--num_problems", 1)
    for result in (exported, filtered):
        assert result.exit_code == 2
        assert re.search(r"taken\S* cannot be (used|written): ", result.sentence)


def test_a_checkpoint_of_another_stage_is_refused_by_name(in_process, config, run_folder):
    settings = yaml.safe_load(config.read_text())
    models = {key: settings["model"]["init_args"][key] for key in ("student", "teacher")}
    settings["model"] = {"class_path": "WarmupModule", "init_args": models}
    settings["data"] = {"class_path": "WarmupDataModule"}
    warmup = config.with_name("warmup.yaml")
    warmup.write_text(yaml.safe_dump(settings))
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    result = in_process("fit", "--config", warmup, "--ckpt_path", checkpoint)
    assert result.exit_code == 2
    assert re.search(r"was trained by GRPOModule and cannot be continued by WarmupModule; .*export", result.sentence)
    saved = read_checkpoint(checkpoint)
    saved[CONFIG_KEY] = saved[CONFIG_KEY].replace("grpo.GRPOModule", "warmup.WarmupModule")
    AtomicCheckpointIO().save_checkpoint(saved, checkpoint)
    reverse = in_process("fit", "--config", config, "--ckpt_path", "last")
    assert "was trained by WarmupModule and cannot be continued by GRPOModule" in reverse.sentence


def test_flipped_bits_of_a_checkpoint_are_refused(in_process, config, run_folder):
    path = run_folder / "checkpoints" / "last.ckpt"
    content, rng = path.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        place = rng.randrange(len(content))
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="it is damaged"):
            read_checkpoint(path)
    for arguments in (["fit", "--config", config, "--ckpt_path", "last"], ["export", "--ckpt_path", path]):
        result = in_process(*arguments, *(["--output", "exported"] if arguments[0] == "export" else []))
        assert result.exit_code == 2
        assert "last.ckpt cannot be read, it is damaged" in result.sentence


@pytest.mark.parametrize(
    ("name", "content"), [("baseline.json", "{"), ("baseline.json", "[]"), ("rollouts.jsonl", "{}\n{}\n")]
)
def test_a_damaged_file_of_the_run_is_named_on_resume(in_process, config, run_folder, name, content):
    (run_folder / name).write_text(content)
    result = in_process("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_steps", 2)
    assert result.exit_code == 2
    assert re.search(rf"{name}(:1)? is (damaged: |no rollout of a run)", result.sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model.max_completion_tokens", "20"], "max_completion_tokens is 20, which is too short for an answer"),
        (["--model.teacher", "STUDENT"], "Student and teacher are both '.*': a call cannot help"),
    ],
)
def test_settings_that_teach_nothing_are_warned_of(in_process, config, small_pair, recwarn, arguments, sentence):
    arguments = [argument.replace("STUDENT", small_pair.student) for argument in arguments]
    result = in_process("fit", "--config", config, "--trainer.max_steps", 1, "--report.enabled", "false", *arguments)
    assert result.exit_code == 0, result.errors
    assert any(re.search(sentence, str(warning.message)) for warning in recwarn)


def test_folder_is_free_for_the_corrected_command_when_a_run_died_before_its_first_checkpoint(
    in_process, config, tmp_path
):
    arguments = ["fit", "--config", config, "--report.enabled", "false", "--checkpoint.every_n_train_steps", 4]
    died = in_process(*arguments, "--model.optimizer.init_args.lr", "1e30")  # at the second or third step
    assert died.exit_code == 2
    assert "training stops before it reaches the weights" in died.sentence
    folder = tmp_path / "runs" / "grpo"
    assert (folder / "rollouts.jsonl").read_text()
    corrected = in_process(*arguments, "--trainer.max_steps", 2)
    assert corrected.exit_code == 0, corrected.errors
    steps = [json.loads(line)["step"] for line in (folder / "rollouts.jsonl").read_text().splitlines()]
    assert steps == [0] * 16
    assert in_process(*arguments).exit_code == 2
