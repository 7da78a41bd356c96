"""Code that comes with a model runs only if the command line of this call says so, whatever a file says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from relay_lightning.callbacks.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from relay_lightning.callbacks.config_writer import CONFIG_KEY


@pytest.fixture
def hostile(small_pair, tmp_path, monkeypatch) -> tuple[str, Path]:
    """A model folder whose code leaves a trace when it runs, and the trace."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder, trace = tmp_path / "hostile", tmp_path / "has_run"
    shutil.copytree(small_pair.student, folder)
    settings = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoConfig": "code_of_model.Own"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code_of_model.py").write_text(
        "from pathlib import Path\nfrom transformers import Qwen3Config\n"
        f"Path({str(trace)!r}).touch()\nclass Own(Qwen3Config): pass\n"
    )
    return str(folder), trace


def trusting(config: Path, hostile: str) -> Path:
    """The configuration file of a run that trusts its models."""
    settings = yaml.safe_load(config.read_text())
    loading = {"trust_remote_code": True}
    settings["model"]["init_args"] |= {"student": hostile, "student_loading": loading, "teacher_loading": loading}
    path = config.with_name("trusting.yaml")
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("subcommand", ["fit", "test", "predict", "validate", "plan"])
def test_a_configuration_file_gives_no_trust(in_process, config, hostile, subcommand):
    folder, trace = hostile
    result = in_process(subcommand, "--config", trusting(config, folder))
    assert result.exit_code == 2
    assert re.search(
        r"says model.*_loading.trust_remote_code: true, but .* add --model.*_loading.trust_remote_code true",
        result.sentence,
    )
    assert not trace.exists()


def test_trust_of_one_model_is_not_that_of_another(in_process, config, hostile):
    given = ["--model.student_loading.trust_remote_code", "true"]
    result = in_process("fit", "--config", trusting(config, hostile[0]), *given)
    assert result.exit_code == 2
    assert "teacher_loading.trust_remote_code" in result.sentence


@pytest.mark.parametrize(
    "given",
    [
        ["--model.student_loading.trust_remote_code", "true", "--model.teacher_loading.trust_remote_code=true"],
        [
            *("--model.init_args.student_loading", "{trust_remote_code: true}"),
            "--model.teacher_loading={trust_remote_code: true}",
        ],
    ],
)
def test_the_command_line_gives_trust(in_process, config, hostile, given):
    folder, trace = hostile
    result = in_process("fit", "--config", trusting(config, folder), *given)
    assert "Unrecognized configuration class" in result.sentence  # its code has run, and brings no model
    assert trace.exists()


@pytest.mark.parametrize(("subcommand", "role"), [("filter", "teacher"), ("generate", "student")])
def test_the_other_commands_take_no_trust_from_a_file(in_process, tmp_path, hostile, subcommand, role):
    folder, trace = hostile
    path = tmp_path / "options.yaml"
    path.write_text(yaml.safe_dump({role: folder, f"{role}_loading": {"trust_remote_code": True}}))
    arguments = ["--output", "kept.jsonl"] if subcommand == "filter" else ["How many?"]
    result = in_process(subcommand, *arguments, "--config", path)
    assert result.exit_code == 2
    assert f"says {role}_loading.trust_remote_code: true" in result.sentence
    assert not trace.exists()


@pytest.mark.parametrize("is_trusted", [False, True])
def test_export_takes_trust_from_its_own_command_line_alone(in_process, config, hostile, tmp_path, is_trusted):
    folder, trace = hostile
    trained = in_process("fit", "--config", config, "--report.enabled", "false", "--trainer.max_steps", 1)
    assert trained.exit_code == 0, trained.errors
    path = tmp_path / "runs" / "grpo" / "checkpoints" / "last.ckpt"
    saved = read_checkpoint(path)
    settings = yaml.safe_load(saved[CONFIG_KEY])
    settings["model"]["init_args"] |= {"student": folder, "student_loading": {"trust_remote_code": True}}
    AtomicCheckpointIO().save_checkpoint(saved | {CONFIG_KEY: yaml.safe_dump(settings)}, path)
    given = ["--trust_remote_code", "true"] if is_trusted else []
    in_process("export", "--ckpt_path", path, "--output", "exported", *given)
    assert trace.exists() == is_trusted
