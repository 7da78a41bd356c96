"""The planned peak of a whole GRPO run against the one that the allocator shows."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from allocator import measured_peak
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from relay_lightning.commands.plan import run_settings
from relay_lightning.commands.workload import read_workload
from relay_lightning.data.chat_template import make_prompt
from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.memory.plan import plan_memory
from relay_lightning.models.loading import load_tokenizer
from relay_lightning.models.lora import LoRASettings
from relay_lightning.models.settings import LoadSettings
from relay_lightning.modules.grpo import GRPOModule

QUESTION = "How many kebu?"
NF4 = LoadSettings(dtype="bf16", quantization="nf4")
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {"beta": 0.1},
    "lora": {"lora": LoRASettings(rank=8), "student_loading": LoadSettings(dtype="bf16")},
    "nf4": {
        "lora": LoRASettings(rank=8),
        "student_loading": NF4,
        "teacher_loading": NF4,
        "gradient_checkpointing": True,
        "max_num_seqs": 2,  # less for decoding than for training
    },
}


@pytest.fixture(scope="module")
def pair(small_pair, tmp_path_factory) -> dict[str, str]:
    """Random models in fp32 that write until they may no longer, as a plan takes them to."""
    folder = tmp_path_factory.mktemp("pair")
    tokenizer = load_tokenizer(small_pair.student)
    for name, num_layers in (("student", 4), ("teacher", 6)):
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=512,
            eos_token_id=None,
            dtype="float32",
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("student", "teacher")}


@pytest.fixture
def _counted_weights(monkeypatch) -> None:
    """Has weights made where a profiler counts them, not in threads, and the files they come from closed at once."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    original = AutoModelForCausalLM.from_pretrained

    def from_pretrained(path: str, **options: Any) -> Any:
        model = original(path, **options)
        gc.collect()
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)


@pytest.mark.usefixtures("_counted_weights")
@pytest.mark.parametrize("variant", ["full", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "nf4"))])
def test_a_run_takes_the_memory_that_is_planned_for_it(pair, tmp_path: Path, variant: str) -> None:
    if variant == "nf4":
        pytest.importorskip("bitsandbytes")
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps({"question": QUESTION, "answer": "1"}) + "\n" for _ in range(4)))
    num_prompt_tokens = len(make_prompt(load_tokenizer(pair["student"]), 0, QUESTION).token_ids)
    options = {"max_num_seqs": 8} | VARIANTS[variant]
    module = GRPOModule(**pair, group_size=4, max_completion_tokens=120, **options)
    data = PromptDataModule(
        **dict.fromkeys(("train", "val", "test"), str(problems)),
        prompts_per_rollout=4,
        steps_per_rollout=2,
        max_prompt_tokens=num_prompt_tokens,
        eval_batch_size=8,
    )
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        devices=1,
        precision="32-true" if variant == "full" else "bf16-mixed",
        accumulate_grad_batches=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    planned = plan_memory(read_workload(module, data, run_settings(trainer), "cpu", 1e12))
    found = measured_peak(lambda: trainer.fit(module, data), tmp_path / "trace.json")
    assert not any(rollout.completion.spans for group in module.last_groups for rollout in group.rollouts)
    assert planned.peak == planned.phases["the training pass"], "keys and values are given back before it"
    assert found == pytest.approx(planned.peak, rel=0.15)
