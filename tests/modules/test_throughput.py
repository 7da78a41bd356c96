"""What a run says of its own speed: figures that add up, and phases that the profiler names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.profilers import SimpleProfiler
from transformers import LlamaConfig

from relay_lightning.data.sft import WarmupDataModule
from relay_lightning.models.loading import load_model
from relay_lightning.models.lora import LoRASettings
from relay_lightning.models.settings import LoadSettings
from relay_lightning.models.skeleton import ModelPlan
from relay_lightning.modules.flops import PassFlops, pass_flops
from relay_lightning.modules.peak_flops import peak_flops_per_s
from relay_lightning.modules.update_meter import UpdateMeter
from relay_lightning.modules.warmup import WarmupModule
from relay_lightning.types import TokenSource


class Facts(Callback):
    """Keeps, of every optimiser step, what was logged and what was decoded and trained on."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, float], list[Any], list[Any]]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.logged_metrics.items()}
        completions = [rollout.completion for group in module.last_groups for rollout in group.rollouts]
        self.steps.append((metrics, completions, module._buffer.train_batches))


def test_tokens_per_second_times_seconds_are_the_tokens_that_were_written(make_module, make_data, make_trainer) -> None:
    facts = Facts()
    make_trainer(1, callbacks=[facts]).fit(make_module(), make_data(steps_per_rollout=1))
    ((metrics, completions, _),) = facts.steps
    sources = [source for completion in completions for source in completion.token_source]
    for author, source in (("student", TokenSource.STUDENT), ("teacher", TokenSource.TEACHER)):
        written = metrics[f"throughput/{author}_tokens_per_s"] * metrics[f"time/{author}_s"]
        assert written == pytest.approx(sources.count(source), rel=1e-5)
        assert sources.count(source) > 0
    parts = sum(metrics[f"time/{part}_s"] for part in ("student", "teacher", "prefill"))
    assert 0 < parts <= metrics["time/rollout_s"]
    assert metrics["time/reward_s"] > 0
    assert metrics["time/collate_s"] > 0


def test_an_update_counts_all_micro_batches_of_its_optimiser_step(make_module, make_data, make_trainer) -> None:
    facts = Facts()
    trainer = make_trainer(2, callbacks=[facts], accumulate_grad_batches=2)
    module = make_module()
    trainer.fit(module, make_data(steps_per_rollout=1))
    assert len(facts.steps) == 4
    assert "time/update_s" not in facts.steps[0][0], "no step is complete yet"
    flops = pass_flops(module._student_plan)
    metrics = facts.steps[2][0]  # a step's figures are logged after the callbacks saw its last batch
    batches = facts.steps[1][2]
    num_tokens = sum(batch.token_ids.numel() for batch in batches)
    num_flops = sum(flops.of(*batch.token_ids.shape, int(batch.loss_mask.sum())) for batch in batches)
    assert metrics["throughput/update_tokens_per_s"] * metrics["time/update_s"] == pytest.approx(num_tokens, rel=1e-5)
    assert metrics["throughput/update_flops_per_s"] * metrics["time/update_s"] == pytest.approx(num_flops, rel=1e-5)
    assert not {"throughput/mfu", "memory/peak_gb"} & metrics.keys(), "figures of a GPU alone"


def test_the_simple_profiler_names_every_phase(make_module, make_data, make_trainer, tmp_path) -> None:
    profiler = SimpleProfiler(tmp_path, "phases")
    make_trainer(1, profiler=profiler).fit(make_module(), make_data(steps_per_rollout=1))
    (report,) = tmp_path.glob("*phases.txt")
    for region in ("rollout", "reward", "collate", "loss"):
        assert f"[Relay]{region} " in report.read_text()
    for region in (".backward", ".optimizer_step"):
        assert region in report.read_text()


def test_the_warm_up_says_what_its_steps_cost(small_pair, make_trainer, tmp_path) -> None:
    source = dict.fromkeys(("train", "val", "test"), small_pair.problems)
    module = WarmupModule(
        student=small_pair.student, teacher=None, max_completion_tokens=16, cache_dir=str(tmp_path / "samples")
    )
    trainer = make_trainer(1, profiler=SimpleProfiler())
    trainer.fit(module, WarmupDataModule(**source, batch_size=4))
    metrics = trainer.logged_metrics
    assert 0 < trainer.profiler.recorded_durations["[Relay]loss"][0] <= metrics["time/update_s"]
    assert metrics["throughput/update_tokens_per_s"] > 0


SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8}
LAYERS, HIDDEN, KV_HEADS, RANK = 3, 32, 2, 4


@pytest.mark.parametrize("lora", [None, LoRASettings(RANK, target_modules=["q_proj"])])
def test_flops_are_those_of_the_published_formula(lora) -> None:
    """2 a token and weight in each of three products, or two where the weight is frozen; 4 T D more for attention."""
    config = LlamaConfig(**SIZES, num_hidden_layers=LAYERS, num_key_value_heads=KV_HEADS, tie_word_embeddings=False)
    found = pass_flops(ModelPlan("student", config, LoadSettings(), is_trained=True, lora=lora))
    kv_size = KV_HEADS * SIZES["head_dim"]
    layer = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * kv_size + 3 * HIDDEN * SIZES["intermediate_size"]
    head = HIDDEN * SIZES["vocab_size"]
    if lora is None:
        assert found.per_token == pytest.approx(6 * LAYERS * layer, rel=0.02)  # and the rotary angles
        assert found.per_loss_token == 6 * head
        assert found.per_pair == pytest.approx(3 * 4 * LAYERS * HIDDEN)
    else:
        assert found.per_loss_token == 4 * head
        assert 4 * (LAYERS - 1) * layer < found.per_token < 4.5 * LAYERS * layer


def test_counting_flops_neither_needs_weights_nor_draws_random_numbers(small_pair) -> None:
    model = load_model(small_pair.student)
    state = torch.get_rng_state()
    pass_flops(ModelPlan("student", model.config, LoadSettings(), is_trained=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_mfu_is_the_share_of_what_the_device_can_do(monkeypatch) -> None:
    monkeypatch.setattr("relay_lightning.modules.update_meter.peak_flops_per_s", lambda *_: 1e15)
    meter = UpdateMeter(PassFlops(10.0, 1.0, 5.0), torch.device("cpu"), torch.bfloat16)
    meter.start(2, 4, 3)
    assert meter.stop(is_step_complete=False) == {}
    meter.start(1, 4, 1)
    figures = meter.stop(is_step_complete=True)
    assert figures["throughput/update_flops_per_s"] * figures["time/update_s"] == pytest.approx(3 * (40 + 16) + 4 * 5)
    assert figures["throughput/mfu"] == pytest.approx(figures["throughput/update_flops_per_s"] / 1e15)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA L40", 181.05),
        ("NVIDIA L4", 121),
        ("NVIDIA A100-SXM4-80GB", 312),
    ],
)
def test_mfu_is_a_share_of_what_dense_products_can_reach(monkeypatch, name, teraflops) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    assert peak_flops_per_s(torch.device("cuda"), torch.bfloat16) == pytest.approx(teraflops * 1e12)


def test_mfu_is_left_out_with_a_warning_on_a_device_that_is_not_known(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA Newest")
    with pytest.warns(UserWarning, match="FLOPs not found for 'NVIDIA Newest'"):
        assert peak_flops_per_s(torch.device("cuda"), torch.bfloat16) is None
