"""`plan` on the real command line: the Qwen3 configurations fit their overlays' devices, and advice holds."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from relay_lightning.commands.plan import plan_run
from relay_lightning.data.presets import PRESETS
from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.modules.grpo import GRPOModule

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


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
def test_a_stage_trains_on_what_is_published_and_holds_other_problems_out(stage):
    data = yaml.safe_load(stage.read_text())["data"]["init_args"]
    assert data["train"] == "dapo-17k-filtered"
    names = [data[split] for split in ("train", "val", "test")]
    assert len({PRESETS[name].path for name in names}) == 3


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


def part(output: str, label: str) -> float:
    """The GB of one line of the table."""
    return float(re.search(rf"{label}\S* *│ +([\d.]+)", output)[1])


def test_a_sharded_run_keeps_a_share_of_what_is_trained_and_decodes_with_the_whole(in_process):
    def planned_with(strategy):
        arguments = ("--trainer.devices", 4, "--trainer.strategy", strategy)
        result = planned(in_process, CONFIGS / "qwen3" / "0.6b_warmup.yaml", 80, *arguments)
        assert result.exit_code == 0, result.errors
        return result.output

    whole, sharded = planned_with("ddp"), planned_with("fsdp")
    for label, factor in (("student, with its adapters", 1.25), ("gradients", 0.25), ("optimiser state", 0.25)):
        assert part(sharded, label) == pytest.approx(factor * part(whole, label), abs=0.02), label
    assert part(sharded, "teacher") == part(whole, "teacher")


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


NO_ROOM = ("--model.beta", "0.1", "--report.enabled", "false")
"""More than the 25 MB that the small device has."""


@pytest.fixture
def _small_device(monkeypatch) -> None:
    monkeypatch.setattr("relay_lightning.commands.plan.own_memory_bytes", lambda _: 0.025e9)


@pytest.mark.usefixtures("_small_device")
def test_fit_stops_with_the_sentence_of_the_plan_before_it_loads_weights(in_process, config, monkeypatch, tmp_path):
    monkeypatch.setattr("relay_lightning.modules.base.load_model", lambda *_: pytest.fail("weights were loaded"))
    refused = in_process("fit", "--config", config, *NO_ROOM, "--plan", "stop")
    assert refused.exit_code == 2
    planned = in_process("plan", "--config", config, *NO_ROOM, "--device_memory_gb", "0.025")
    # A run on a CPU is planned for a CPU, `--device_memory_gb` for a GPU.
    figure = re.compile(r"peak \d+\.\d+ GB")
    assert figure.sub("", refused.sentence).startswith(figure.sub("", planned.sentence).partition(" With ")[0])
    assert refused.sentence.endswith("To try it all the same: --plan warn.")
    assert not (tmp_path / "runs" / "grpo" / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_small_device")
def test_fit_stops_before_anything_is_asked_of_the_hub(in_process, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ("--config", CONFIGS / "qwen3" / "0.6b_warmup.yaml", "--config", OVERLAYS[0])
    refused = in_process("fit", *arguments, "--trainer.accelerator", "cpu", "--model.kv_cache_gb", 2, "--plan", "stop")
    assert refused.exit_code == 2
    assert re.match(r"error: The run does not fit: peak .* With .* even then it would not fit", refused.sentence)


@pytest.mark.usefixtures("_small_device")
def test_fit_goes_on_when_asked_to_warn(in_process, config, tmp_path):
    with pytest.warns(UserWarning, match="The run does not fit: peak"):
        result = in_process("fit", "--config", config, *NO_ROOM, "--plan", "warn", "--trainer.max_steps", 1)
    assert result.exit_code == 0, result.errors
    assert (tmp_path / "runs" / "grpo" / "rollouts.jsonl").exists()


@pytest.mark.usefixtures("_small_device")
def test_a_run_on_a_cpu_is_not_planned_unless_asked(in_process, config):
    result = in_process("fit", "--config", config, *NO_ROOM, "--trainer.max_steps", 1)
    assert result.exit_code == 0, result.errors
    assert "does not fit" not in result.errors


def on_a_gpu(precision: str) -> SimpleNamespace:
    """What a plan asks of a trainer."""
    strategy = SimpleNamespace(root_device=SimpleNamespace(type="cuda"))
    return SimpleNamespace(
        strategy=strategy, precision=precision, num_devices=1, num_nodes=1, accumulate_grad_batches=1, world_size=1
    )


@pytest.mark.usefixtures("_small_device")
def test_a_run_on_a_gpu_is_planned_by_default_if_it_can_be(small_pair):
    module = GRPOModule(student=small_pair.student, teacher=small_pair.teacher, max_num_seqs=64)
    data = PromptDataModule()
    with pytest.raises(RuntimeError, match="does not fit: peak"):
        plan_run(module, data, on_a_gpu("32-true"), None)
    with pytest.warns(UserWarning, match="not planned: .*'transformer-engine' cannot be planned for"):
        plan_run(module, data, on_a_gpu("transformer-engine"), None)
    plan_run(module, data, on_a_gpu("32-true"), "off")


def test_fit_on_a_gpu_gives_the_run_the_planned_memory_for_keys_and_values(small_pair, monkeypatch, caplog):
    monkeypatch.setattr("relay_lightning.commands.plan.own_memory_bytes", lambda _: 1e9)
    data = PromptDataModule()

    def fitted(**options):
        module = GRPOModule(
            student=small_pair.student, teacher=small_pair.teacher, max_num_seqs=64, block_size=16, **options
        )
        plan_run(module, data, on_a_gpu("32-true"), None)
        return module.kv_cache_gb

    gigabytes = fitted()
    (num_blocks,) = map(int, re.findall(r"kv_cache_gb: auto\), (\d+) blocks of 16 tokens", caplog.text))
    bytes_per_token = 2 * 2 * 2 * 32 * 4  # two models of one layer: keys and values of two heads of 32 numbers
    assert gigabytes == pytest.approx(num_blocks * 16 * bytes_per_token / 1e9, abs=2e-6)
    assert fitted(kv_cache_gb=0.01) == 0.01


@pytest.mark.slow
def test_memory_for_keys_and_values_changes_no_sample(in_process, config, tmp_path):
    quiet = ("--report.enabled", "false", "--trainer.max_steps", 2)
    for name, gigabytes in (("much", "auto"), ("little", 0.0008)):
        arguments = ("--model.kv_cache_gb", gigabytes, "--run_dir", name)
        result = in_process("fit", "--config", config, *quiet, *arguments)
        assert result.exit_code == 0, result.errors
    rollouts = [(tmp_path / name / "rollouts.jsonl").read_bytes() for name in ("much", "little")]
    assert rollouts[0] == rollouts[1]


def test_plan_shows_how_many_rows_the_keys_and_values_hold(in_process, config):
    limits = ("--data.max_prompt_tokens", 96, "--model.kv_cache_gb", 0.001, "--model.block_size", 16)
    result = in_process("plan", "--config", config, *limits, "--device_memory_gb", 80)
    assert result.exit_code == 0, result.errors
    assert "keys and values: 0.00 GB (kv_cache_gb: 0.001), 61 blocks of 16 tokens for each model\n" in result.output
    assert "7 rows of the longest length (128 tokens), or 30 of a mean length (24 + 8 tokens: " in result.output
    shorter = in_process("plan", "--config", config, *limits, "--mean_completion_tokens", 25, "--device_memory_gb", 80)
    assert "or 15 of a mean length (24 + 25 tokens: " in shorter.output


@pytest.mark.parametrize("mean", [0, 33])
def test_a_mean_length_beyond_the_longest_is_refused(in_process, config, mean):
    result = in_process("plan", "--config", config, "--mean_completion_tokens", mean)
    assert result.exit_code == 2
    assert re.search(rf"mean_completion_tokens must be from 1 to .*, 32, not {mean}\.", result.sentence)


def test_plan_says_what_auto_is_on_a_cpu(in_process, config):
    result = in_process("plan", "--config", config, "--trainer.accelerator", "cpu", "--device_memory_gb", 0.1)
    assert result.exit_code == 0, result.errors
    assert "(kv_cache_gb: auto, at most 25% of all memory), 128 blocks of 64 tokens" in result.output
