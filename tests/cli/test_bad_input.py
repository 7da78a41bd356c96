"""Bad input through the command line: one sentence that names the culprit, a failing exit code, and nothing lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model.group_siz", "3"], r"no key 'group_siz'; did you mean 'group_size'"),
        (["--trainr.max_steps", "3"], r"no key 'trainr.max_steps'; did you mean 'trainer.max_steps'"),
        (["--model.group_size", "many"], r"group_size: expected int, got 'many'"),
        (["--model.loss_type", "ppo"], r"loss_type: expected one of 'grpo', .*got 'ppo'"),
        (["--model.group_size", "1"], r"group_size must be at least 2"),
        (["--model.max_num_seqs", "0"], r"max_num_seqs must be at least 1, not 0"),
        (["--model.kv_cache_gb", "-2"], r"kv_cache_gb must be 'auto' or a number of GB above 0, not -2"),
        (["--model.kv_cache_gb", "all"], r"kv_cache_gb: expected float or 'auto', got 'all'"),
        (["--model.block_size", "8"], r"block_size must be a multiple of 16, not 8"),
        (["--model.max_calls", "many"], r"max_calls: expected int or 'auto', got 'many'"),
        (["--model.max_calls", "-1"], r"max_calls must be at least 0 or None, not -1"),
        (["--model.max_call_tokens", "0"], r"max_call_tokens must be at least 1 or None, not 0"),
        (["--model.student", "/no/where"], r"folder '/no/where' does not exist"),
        (["--model.teacher", "tiny:professor"], r"'tiny:professor' is unknown"),
        (["--model.teacher", "Qwen/None-of-these"], r"'Qwen/None-of-these' is not a local folder.*such as ./None-of-"),
        (["--model.student", "adapters"], r"'adapters' holds adapters without their model; export .* --merge true"),
        (["--data.train", "nope.jsonl"], r"file nope.jsonl does not exist"),
        (["--data.train", "gsm8k"], r"file gsm8k does not exist. Data sets with a name are .*gsm8k:train, gsm8k:test"),
        (["--data.train", "{question: q}"], r"needs the key 'path', but has only 'question'"),
        (["--data.train", "{path: a.jsonl, qestion: q}"], r"train: there is no key 'qestion'; did you mean 'question'"),
        (["--data.train", "{path: a.jsonl, answer: [q]}"], r"train: expected str, got '\['q'\]'"),
        (["--data.train", "{path: a.jsonl, answer_pattern: '#+'}"], r"answer_pattern '#\+' must have one group"),
        (["--data.max_prompt_tokens", "5"], r"All 8 prompts of .* exceed max_prompt_tokens=5"),
        (["--data.prompts_per_rollout", "100"], r"prompts_per_rollout is 100, but there are 8 prompts"),
        (["--checkpoint.every_n_train_steps", "0"], r"checkpoint.every_n_train_steps must be at least 1"),
        (["--trainer.strategy", "fdsp"], r"invalid strategy name: `strategy='fdsp'`"),
        (["--trainer.strategy", "fsdp_cpu_offload"], r"strategy `fsdp` requires a GPU"),
        (["--ckpt_path", "nope.ckpt"], r"checkpoint nope.ckpt does not exist"),
    ],
)
def test_fit_refuses_bad_values(in_process, config, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "adapters").mkdir()
    write(tmp_path / "adapters" / "adapter_config.json", "{}")
    result = in_process("fit", "--config", config, *arguments)
    assert result.exit_code == 2
    assert re.search(sentence, result.sentence)
    assert not (tmp_path / "runs" / "grpo" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"question": "a", "answer": "1"}\n{"question": \n', r"train.jsonl:2 is not valid JSON"),
        ('{"problem": "a", "answer": "1"}\n', r"train.jsonl:1 lacks 'question'; its columns are 'problem', 'answer'"),
        ("\n", r"train.jsonl holds no problems"),
    ],
)
def test_fit_names_file_and_line_of_bad_data(in_process, config, tmp_path, content, sentence):
    write(tmp_path / "train.jsonl", content)
    result = in_process("fit", "--config", config, "--data.train", "train.jsonl")
    assert result.exit_code == 2
    assert re.search(sentence, result.sentence)


def test_fit_names_unknown_keys_of_a_configuration_file(in_process, config):
    text = config.read_text()
    for broken, sentence in (
        (text + "modle: 3\n", "no key 'modle'; did you mean 'model'"),
        (text.replace("max_steps", "max_stepz"), "no key 'trainer.max_stepz'; did you mean 'trainer.max_steps'"),
        (text.replace("group_size", "group_siz"), "no key 'group_siz'; did you mean 'group_size'"),
    ):
        result = in_process("fit", "--config", write(config.with_name("broken.yaml"), broken))
        assert result.exit_code == 2
        assert re.search(sentence, result.sentence)


def test_foreign_and_damaged_checkpoints_are_refused(in_process, config, tmp_path):
    write(tmp_path / "damaged.ckpt", "PK nonsense")
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.ckpt")
    stranger = {"pytorch-lightning_version": "2.6.4", "global_step": 3, "state_dict": {"layer.weight": torch.ones(2)}}
    torch.save(stranger, tmp_path / "stranger.ckpt")
    for name, sentence in (
        ("damaged.ckpt", r"damaged.ckpt cannot be read"),
        ("model.ckpt", r"model.ckpt is not a checkpoint of a run"),
        ("stranger.ckpt", r"does not fit the student .*is missing"),
    ):
        result = in_process("fit", "--config", config, "--ckpt_path", name)
        assert result.exit_code == 2
        assert re.search(sentence, result.sentence)


def test_unknown_subcommands_and_missing_arguments_are_named(in_process):
    assert "no subcommand 'train'" in in_process("train").sentence
    assert in_process().exit_code == 2
    assert "required: ckpt_path" in in_process("export", "--output", "out").sentence
    assert "nope.yaml" in in_process("fit", "--config", "nope.yaml").sentence


def test_validation_without_a_checkpoint_says_which_folder_has_none(in_process, config):
    result = in_process("validate", "--config", config, "--run_dir", "runs/none", "--ckpt_path", "last")
    assert result.exit_code == 2
    assert "runs/none has no checkpoint" in result.sentence


def test_export_refuses_a_folder_that_is_not_empty(in_process, tmp_path):
    write(tmp_path / "precious.txt", "kept")
    result = in_process("export", "--ckpt_path", "last.ckpt", "--output", tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in result.sentence
    assert (tmp_path / "precious.txt").read_text() == "kept"


def test_filter_refuses_to_go_on_with_other_settings(in_process, small_pair, tmp_path):
    output = tmp_path / "kept.jsonl"
    write(Path(f"{output}.pass_rates"), json.dumps({"settings": {"num_samples": 10}}) + "\n")
    arguments = ["--data", small_pair.problems, "--num_problems", "null", "--teacher", small_pair.teacher]
    result = in_process("filter", "--output", output, *arguments, "--num_samples", 2)
    assert result.exit_code == 2
    assert "num_samples was 10 and is 2" in result.sentence
