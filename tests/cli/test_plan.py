"""`plan` on the real command line: the Qwen3 configurations fit their overlays' devices, and advice holds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = sorted((CONFIGS / "qwen3").glob("*.yaml"))
OVERLAYS = sorted((CONFIGS / "trainer").glob("gpu*gb.yaml"))


def planned(in_process, stage: Path, gigabytes: float, *arguments: object):
    """The plan of a stage file; the warmed-up student of stage 2 need not exist yet."""
    size = stage.name.partition("_")[0].upper()
    student = ("--model.student", f"Qwen/Qwen3-{size}")
    return in_process("plan", "--config", stage, *arguments, *student, "--device_memory_gb", gigabytes)


def test_there_is_a_stage_file_and_an_overlay_for_every_size():
    assert {path.stem for path in STAGES} == {"0.6b_grpo", "0.6b_warmup", "1.7b_grpo", "1.7b_warmup"}
    assert {path.stem for path in OVERLAYS} == {"gpu24gb", "gpu48gb", "gpu80gb"}


def test_the_largest_student_fits_the_smallest_device(in_process):
    """Without network and without weights."""
    result = planned(in_process, CONFIGS / "qwen3" / "1.7b_grpo.yaml", 24, "--config", OVERLAYS[0])
    assert result.exit_code == 0, result.errors
    assert re.search(r"fits: peak \d+\.\d+ GB of 24\.00 GB", result.output)
    assert "Qwen/Qwen3-1.7B with Qwen/Qwen3-8B" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("overlay", [None, *OVERLAYS], ids=lambda path: path.stem if path else "alone")
@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
def test_every_stage_fits_the_device_of_every_overlay(in_process, stage, overlay):
    gigabytes = 80 if overlay is None else int(re.sub(r"\D", "", overlay.stem))
    result = planned(in_process, stage, gigabytes, *(() if overlay is None else ("--config", overlay)))
    assert result.exit_code == 0, result.errors


def advised_arguments(sentence: str) -> tuple[list[str], str]:
    """The changes that a refusal names, as arguments, and the peak that it promises."""
    advised = re.search(r"With (.*) it would fit: (\d+\.\d+) GB", sentence)
    assert advised, sentence
    return [part for change in advised[1].split(", ") for part in f"--{change}".split(": ")], advised[2]


def test_a_run_fits_when_the_advice_of_its_plan_is_followed(in_process, config):
    command = ("plan", "--config", config, "--device_memory_gb", "0.025", "--model.beta", "0.1")
    too_small = in_process(*command)
    assert too_small.exit_code == 2
    changes, peak = advised_arguments(too_small.sentence)
    followed = in_process(*command, *changes)
    assert followed.exit_code == 0, followed.errors
    assert f"peak {peak} GB" in followed.output


@pytest.mark.slow
def test_a_large_pair_fits_a_small_device_when_the_advice_is_followed(in_process):
    stage = CONFIGS / "qwen3" / "1.7b_grpo.yaml"
    changes, peak = advised_arguments(planned(in_process, stage, 24).sentence)
    assert {"--model.teacher_loading.quantization", "--model.student_loading.quantization"} <= set(changes)
    followed = planned(in_process, stage, 24, *changes)
    assert followed.exit_code == 0, followed.errors
    assert f"peak {peak} GB" in followed.output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--trainer.precision", "transformer-engine"], r"precision 'transformer-engine' cannot be planned for"),
        (["--trainer.accelerator", "gpu"], r"no GPU to plan for; .*--device_memory_gb"),
        (["--model.student", "./nowhere"], r"model folder './nowhere' does not exist"),
    ],
)
def test_plan_refuses_what_it_cannot_plan(in_process, config, monkeypatch, arguments, sentence):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = in_process("plan", "--config", config, *arguments)
    assert result.exit_code == 2
    assert re.search(sentence, result.sentence)
