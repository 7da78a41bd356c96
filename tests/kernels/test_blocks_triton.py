"""A decoder's blocks with their norms and linear layers in Triton compute what Transformers does."""

from __future__ import annotations

import pytest
import torch
from random_models import random_model
from relay_kernels import norm_linear
from transformers import Qwen2Config, Qwen2ForCausalLM

from relay_lightning.engine import blocks
from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.local import LocalModel

VOCAB_SIZE, BLOCK_SIZE = 50, 16
LOGIT_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def model_with_biases():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


MODELS = {
    "qwen3": lambda: random_model("qwen3", VOCAB_SIZE),
    "llama": lambda: random_model("llama", VOCAB_SIZE),
    "qwen2": model_with_biases,
}


@pytest.fixture
def launches(monkeypatch, device):
    """Sends every norm with plain linear layers behind it to Triton, and counts them."""
    calls = []

    def count(*arguments, **options):
        calls.append(options)
        return norm_linear(*arguments, **options, backend="triton")

    monkeypatch.setattr(blocks, "FUSED_DEVICES", {device.type})
    monkeypatch.setattr(blocks, "norm_linear", count)
    return calls


def run(model, tokens, device):
    """Logits behind a chunk of all but the last token, and a step with that one. tokens: [N, T]."""
    num_rows, num_tokens = tokens.shape
    cache = PagedKVCache(num_rows, BLOCK_SIZE, num_rows, BLOCK_SIZE, device)
    cache.set_blocks([(row, 0, num_rows - 1 - row) for row in range(num_rows)])
    ones = torch.ones(num_rows, dtype=torch.int64, device=device)
    with torch.no_grad(), LocalModel(model).session() as forward:
        positions = cache.begin(None, ones * (num_tokens - 1), num_tokens - 1, num_tokens)
        forward.extend(tokens[:, :-1], positions, cache)
        return forward.step(tokens[:, -1:], cache.begin(None, ones, 1, num_tokens), cache)[0]


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_a_plain_forward_pass(name, launches, device):
    model = MODELS[name]().to(device)
    tokens = torch.randint(2, VOCAB_SIZE, (3, 5), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits[:, -1]
    torch.testing.assert_close(run(model, tokens, device), expected, **LOGIT_TOLERANCE)
    num_layers, num_passes = 2, 2
    assert len(launches) == 2 * num_layers * num_passes


def test_a_layer_that_is_more_than_its_weight_is_called_as_it_is(launches, device):
    model = random_model("qwen3", VOCAB_SIZE).to(device)
    tokens = torch.randint(2, VOCAB_SIZE, (2, 4), generator=torch.Generator().manual_seed(0)).to(device)
    for layer in model.model.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    with torch.no_grad():
        expected = model(input_ids=tokens).logits[:, -1]
    torch.testing.assert_close(run(model, tokens, device), expected, **LOGIT_TOLERANCE)
    assert all(options["is_gated"] for options in launches), "the layers beside a hooked one run apart"
    assert len(launches) == 4
