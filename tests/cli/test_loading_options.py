"""The loading options reach the models of every command that opens some."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

BF16 = "{dtype: bf16, attention: eager}"


@pytest.fixture
def opened(monkeypatch) -> list[tuple[str, torch.dtype, str]]:
    """Folder name, dtype and attention of every model that is opened."""
    found = []
    original = AutoModelForCausalLM.from_pretrained

    def from_pretrained(path: str, **options):
        model = original(path, **options)
        found.append((Path(path).name, model.dtype, model.config._attn_implementation))
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    return found


def test_filter_opens_its_teacher_as_told(in_process, small_pair, opened):
    arguments = ("filter", "--output", "kept.jsonl", "--data", small_pair.problems, "--num_problems", 1)
    arguments += ("--teacher", small_pair.teacher, "--num_samples", 1, "--max_completion_tokens", 8)
    told = in_process(*arguments, "--teacher_loading", BF16)
    assert told.exit_code == 0, told.errors
    assert opened == [("teacher", torch.bfloat16, "eager")]
    otherwise = in_process(*arguments)
    assert re.search("made with other settings .teacher_loading was .*'bf16'.* and is .*None", otherwise.sentence)


def test_synthesize_opens_its_student_as_told(in_process, small_pair, opened):
    arguments = ("synthesize", "--output", "samples.jsonl", "--data", small_pair.problems, "--num_problems", 1)
    arguments += ("--student", small_pair.student, "--max_completion_tokens", 8)
    told = in_process(*arguments, "--student_loading", BF16)
    assert told.exit_code == 0, told.errors
    assert opened == [("student", torch.bfloat16, "eager")]


def test_generate_opens_each_model_as_told(in_process, small_pair, opened):
    arguments = ("generate", "How many kebu?", "--student", small_pair.student, "--teacher", small_pair.teacher)
    told = in_process(*arguments, "--max_completion_tokens", 8, "--teacher_loading", BF16)
    assert told.exit_code == 0, told.errors
    assert opened == [("student", torch.float32, "sdpa"), ("teacher", torch.bfloat16, "eager")]


@pytest.mark.parametrize(
    ("arguments", "dtype"), [((), torch.float32), (("--report.base_student_loading", BF16), torch.bfloat16)]
)
def test_report_opens_the_base_student_as_told(in_process, config, small_pair, opened, arguments, dtype):
    base = ("--report.base_student", small_pair.teacher, "--report.routers", "false", "--report.num_problems", 2)
    told = in_process("fit", "--config", config, "--model.teacher", "null", "--trainer.max_steps", 1, *base, *arguments)
    assert told.exit_code == 0, told.errors
    assert [model[:2] for model in opened] == [("student", torch.float32), ("teacher", dtype)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "?", "--student_loading.quantization", "int4"], "quantization: expected one of 'nf4'"),
        (["filter", "--output", "x", "--teacher_loading.atention", "sdpa"], "did you mean 'teacher_loading.attention'"),
        (["synthesize", "--student_loading.dtype", "fp8"], "dtype: expected one of 'bf16', 'fp16', 'fp32'"),
        (
            ["generate", "?", "--student_loading.attention", "flash_attention_2"],
            "flash-attn is not installed; .*relay-lightning\\[flash-attn\\]",
        ),
        (["fit", "--report.base_student_loading.dtype", "fp8"], "dtype: expected one of 'bf16', 'fp16', 'fp32'"),
    ],
)
def test_a_bad_loading_option_gets_one_sentence(in_process, monkeypatch, arguments, sentence):
    monkeypatch.setattr("relay_lightning.models.loading.find_spec", lambda _: None)
    result = in_process(*arguments)
    assert result.exit_code == 2
    assert re.search(sentence, result.sentence)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [("attention=flash_attention_2", "flash-attn is not installed"), ("quantization=nf4", "is to be quantised to nf4")],
)
def test_a_teacher_that_cannot_be_loaded_is_refused_before_the_run_begins(
    in_process, config, monkeypatch, tmp_path, option, sentence
):
    for module in ("loading", "quantization"):
        monkeypatch.setattr(f"relay_lightning.models.{module}.find_spec", lambda _: None)
    result = in_process("fit", "--config", config, f"--model.teacher_loading.{option}")
    assert result.exit_code == 2
    assert re.search(sentence, result.sentence)
    assert not (tmp_path / "runs" / "grpo" / "config.yaml").exists(), "the folder is still free"
