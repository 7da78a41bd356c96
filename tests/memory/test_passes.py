"""Planned bytes against those that real models, caches and the allocator show."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from allocator import measured_peak
from transformers import Qwen3Config, Qwen3ForCausalLM

from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.local import LocalModel
from relay_lightning.memory.passes import decode_pass, head_workspace, largest_chunk, training_pass
from relay_lightning.models.architecture import recompute_activations
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.settings import LoadSettings
from relay_lightning.models.skeleton import ModelPlan
from relay_lightning.modules.log_probs import token_log_probs
from relay_lightning.modules.precision import decoding_precision

NUM_ROWS, NUM_TOKENS = 2, 192
CONFIG = Qwen3Config(
    vocab_size=1000,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=512,
    tie_word_embeddings=True,
)
STUDENT = ModelPlan("student", CONFIG, LoadSettings(), is_trained=True)


def real_student(plan: ModelPlan) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM._from_config(plan.config, dtype=plan.dtype, attn_implementation="sdpa")
    if plan.lora is not None:
        add_lora(model, plan.lora)
    if plan.gradient_checkpointing:
        recompute_activations(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return model.train()


ADAPTERS = {"lora": LoRASettings(rank=4), "loading": LoadSettings(dtype="bf16")}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="whole", marks=pytest.mark.slow),
        pytest.param({"gradient_checkpointing": True}, id="checkpointing"),
        pytest.param({"precision": "bf16-mixed"}, id="mixed"),
        pytest.param(ADAPTERS | {"precision": "bf16-mixed"}, id="adapters", marks=pytest.mark.slow),
        pytest.param(ADAPTERS | {"gradient_checkpointing": True}, id="adapters-checkpointing", marks=pytest.mark.slow),
    ],
)
def test_training_pass_is_as_large_as_planned(options, tmp_path):
    plan = replace(STUDENT, **options)
    model = real_student(plan)
    token_ids = torch.zeros(NUM_ROWS, NUM_TOKENS, dtype=torch.int64)
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    mask[:, 0] = False

    def work():
        is_mixed = plan.precision.endswith("mixed")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed, cache_enabled=False):
            loss = token_log_probs(model, token_ids, mask).log_probs.sum()
        loss.backward()

    work()  # what is made once and kept, such as rotary tables
    planned = training_pass(plan, NUM_ROWS, NUM_TOKENS)
    itemsize = planned.hidden // (NUM_ROWS * NUM_TOKENS * CONFIG.hidden_size)
    head = head_workspace(plan, NUM_ROWS * NUM_TOKENS, itemsize, "cpu", is_trained=plan.lora is None)
    expected = max(planned.peak, planned.saved + planned.hidden + head)
    assert measured_peak(work, tmp_path / "trace.json") == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_keys_and_values_and_steps_are_as_large_as_planned(precision, tmp_path):
    num_rows, longest, block_size = 4, 160, 16
    num_blocks = num_rows * longest // block_size
    plan = replace(STUDENT, precision=precision)
    model = LocalModel(real_student(plan))
    planned = decode_pass(plan, num_rows, block_size, longest)

    def work():
        with (
            torch.no_grad(),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"),
            decoding_precision(model.device),
            model.session() as forward,
        ):
            assert planned.kv_bytes_per_token == model.kv_bytes_per_token()
            cache = PagedKVCache(num_blocks, block_size, num_rows, longest, model.device)
            cache.block_table[:] = torch.arange(num_blocks).view(num_rows, -1)
            positions = cache.begin(None, torch.full((num_rows,), longest - 1), longest - 1, longest - 1)
            forward.extend(torch.zeros_like(positions), positions, cache)
            positions = cache.begin(None, torch.ones(num_rows, dtype=torch.int64), 1, longest)
            forward.step(torch.zeros_like(positions), positions, cache)
            return cache.num_bytes

    kv_bytes = planned.kv_bytes_per_token * num_rows * longest
    assert work() == kv_bytes
    sampling = 3 * 4 * num_rows * CONFIG.vocab_size
    assert measured_peak(work, tmp_path / "trace.json") == pytest.approx(
        kv_bytes + planned.workspace - sampling, rel=0.15
    )


def test_the_largest_prefill_pass_fills_a_chunk_or_one_long_row():
    assert largest_chunk(4, 100) == (4, 100)
    assert largest_chunk(256, 9000) == (2, 8192)
    assert largest_chunk(256, 20000) == (1, 20000)
