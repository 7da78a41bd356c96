"""A Hugging Face model as a token engine: slots of different length give what a plain forward pass gives."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import flash_attention
import pytest
import torch
from pretend_cuda import pretend_cuda, to_pretended
from random_models import ARCHITECTURES, random_model
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from relay_lightning.engine.local import LocalEngine

VOCAB_SIZE = 50
LOGIT_TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def plain_logits(model: PreTrainedModel, context: list[int]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([context])).logits[0, -1]


def random_tokens(count: int, seed: int) -> list[int]:
    return torch.randint(2, VOCAB_SIZE, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(engine: LocalEngine, contexts: dict[int, list[int]]) -> None:
    """Reads a context into each slot as one right-padded chunk."""
    width = max(map(len, contexts.values()))
    token_ids = torch.tensor([context + [0] * (width - len(context)) for context in contexts.values()])
    engine.extend(torch.tensor(list(contexts)), token_ids, torch.tensor([len(c) for c in contexts.values()]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_a_plain_forward_pass(architecture: str, attention: str):
    model = random_model(architecture, VOCAB_SIZE)
    model.set_attn_implementation(attention)
    engine = LocalEngine(model)
    contexts = {slot: random_tokens(length, slot) for slot, length in enumerate([5, 1, 40, 17])}
    with engine.session():
        engine.allocate(4, 60)
        read(engine, {slot: contexts[slot][:3] for slot in (0, 2)})
        read(engine, {slot: contexts[slot][:-1][3 if slot in (0, 2) else 0 :] for slot in (3, 2, 0)})
        logits = engine.step(torch.tensor([contexts[slot][-1] for slot in range(4)]), torch.ones(4, dtype=torch.bool))
        assert engine.lengths.tolist() == [5, 1, 40, 17]
        some = engine.step(torch.tensor([7, 8]), torch.tensor([True, True]), slots=torch.tensor([2, 1]))
    for slot, context in contexts.items():
        torch.testing.assert_close(logits[slot], plain_logits(model, context), **LOGIT_TOLERANCE)
    torch.testing.assert_close(some[0], plain_logits(model, [*contexts[2], 7]), **LOGIT_TOLERANCE)
    torch.testing.assert_close(some[1], plain_logits(model, [*contexts[1], 8]), **LOGIT_TOLERANCE)


def test_a_model_with_flash_attention_decodes_with_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attention)
    monkeypatch.setattr(sys.modules["relay_kernels.decode_attention"], "why_not_flash", lambda *_: None)
    flash = MagicMock(side_effect=flash_attention.flash_attn_with_kvcache)
    monkeypatch.setattr(flash_attention, "flash_attn_with_kvcache", flash)
    model, context = random_model("qwen3", VOCAB_SIZE), random_tokens(9, 0)
    expected = [plain_logits(model, context), plain_logits(model, [*context[:4], 7])]
    model.config._attn_implementation = "flash_attention_2"
    with pretend_cuda():
        engine = LocalEngine(to_pretended(model))
        slots, is_active = torch.arange(2, device="cuda"), torch.ones(2, dtype=torch.bool, device="cuda")
        with engine.session():
            engine.allocate(2, 40)
            engine.extend(
                slots, torch.tensor([context[:8], context[:8]], device="cuda"), torch.tensor([8, 4], device="cuda")
            )
            logits = engine.step(torch.tensor([context[8], 7], device="cuda"), is_active)
        for row, plain in zip(logits.to("cpu"), expected, strict=True):
            torch.testing.assert_close(row, plain, **LOGIT_TOLERANCE)
    assert flash.call_count == 2 * model.config.num_hidden_layers


def test_inactive_rows_keep_their_cache():
    model = random_model("qwen3", VOCAB_SIZE)
    engine = LocalEngine(model)
    context = random_tokens(9, 0)
    with engine.session():
        engine.allocate(2, 12)
        read(engine, {0: context, 1: context})
        for token in (3, 4, 5):
            engine.step(torch.tensor([token, token]), torch.tensor([False, True]))
        assert engine.lengths.tolist() == [9, 12]
        logits = engine.step(torch.tensor([6, 0]), torch.tensor([True, False]))
    torch.testing.assert_close(logits[0], plain_logits(model, [*context, 6]), **LOGIT_TOLERANCE)


def test_truncated_and_copied_slots_go_on_from_there():
    model = random_model("llama", VOCAB_SIZE)
    engine = LocalEngine(model)
    context = random_tokens(20, 0)
    with engine.session():
        engine.allocate(3, 64)
        read(engine, {1: context})
        engine.copy_prefix(1, torch.tensor([0, 2]), 12)
        engine.truncate(torch.tensor([1, 2]), torch.tensor([15, 4]))
        engine.tighten(15)
        logits = engine.step(torch.tensor([30, 31, 32]), torch.ones(3, dtype=torch.bool))
    for slot, expected in enumerate([[*context[:12], 30], [*context[:15], 31], [*context[:4], 32]]):
        torch.testing.assert_close(logits[slot], plain_logits(model, expected), **LOGIT_TOLERANCE)


def test_slots_are_empty_when_they_are_allocated_again():
    model = random_model("qwen3", VOCAB_SIZE)
    engine = LocalEngine(model)
    with engine.session():
        for _ in range(2):
            engine.allocate(2, 30)
            assert engine.lengths.tolist() == [0, 0]
            read(engine, {0: [5, 6, 7], 1: [8]})
        model.double()
        engine.allocate(2, 30)
        logits = engine.step(torch.tensor([9, 9]), torch.ones(2, dtype=torch.bool))
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits[1], plain_logits(model, [9]), **LOGIT_TOLERANCE)


def test_logits_are_scaled_and_capped_as_the_model_does_it():
    config = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            **config, num_key_value_heads=2, vocab_size=VOCAB_SIZE, final_logit_softcapping=0.5, initializer_range=1.0,
            attn_logit_softcapping=None, layer_types=["full_attention"], attn_implementation="eager",
        )
    ).eval()  # fmt: skip
    engine = LocalEngine(model)
    with engine.session():
        engine.allocate(1, 8)
        read(engine, {0: [3, 4]})
        logits = engine.step(torch.tensor([5]), torch.tensor([True]))
    assert logits.abs().max() <= 0.5
    torch.testing.assert_close(logits[0], plain_logits(model, [3, 4, 5]), **LOGIT_TOLERANCE)


def test_a_gate_that_is_not_silu_is_computed_as_the_model_does_it():
    torch.manual_seed(0)
    config = LlamaConfig(**_SMALL | {"vocab_size": VOCAB_SIZE, "hidden_act": "relu"}, initializer_range=1.0)
    model = LlamaForCausalLM(config).eval()
    engine = LocalEngine(model)
    with engine.session():
        engine.allocate(1, 8)
        read(engine, {0: [3, 4]})
        logits = engine.step(torch.tensor([5]), torch.tensor([True]))
    torch.testing.assert_close(logits[0], plain_logits(model, [3, 4, 5]), **LOGIT_TOLERANCE)


def test_session_restores_the_mode_of_every_module():
    model = random_model("qwen3", VOCAB_SIZE).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    with LocalEngine(model).session():
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError, match="stop"), LocalEngine(model).session():
        raise RuntimeError("stop")
    assert [module.training for module in model.modules()] == modes


def test_a_model_that_attends_in_its_own_way_is_refused_at_its_first_pass():
    model = random_model("gpt_neox", VOCAB_SIZE)
    engine = LocalEngine(model)
    with engine.session():
        engine.allocate(1, 8)
        model.config._attn_implementation = "sdpa"
        with pytest.raises(ValueError, match="does not attend through Transformers' attention interface"):
            engine.step(torch.tensor([4]), torch.tensor([True]))


def test_attention_that_is_not_plain_is_refused_with_the_reason():
    config = Gemma2Config(**_SMALL, head_dim=8, attn_logit_softcapping=50.0, layer_types=["full_attention"])
    engine = LocalEngine(Gemma2ForCausalLM(config))
    with engine.session():
        engine.allocate(1, 8)
        with pytest.raises(ValueError, match="softcap"):
            engine.step(torch.tensor([4]), torch.tensor([True]))


def test_weights_are_those_of_the_moment_and_stay_trainable():
    model = random_model("qwen3", VOCAB_SIZE).train()
    engine = LocalEngine(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        with engine.session():
            engine.allocate(1, 8)
            logits = engine.step(torch.tensor([4]), torch.tensor([True]))
        torch.testing.assert_close(logits[0], plain_logits(model, [4]), **LOGIT_TOLERANCE)
        model(input_ids=torch.tensor([[4, 5]])).logits.square().mean().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()


def test_adapters_take_part():
    peft = pytest.importorskip("peft")
    model = random_model("qwen3", VOCAB_SIZE)
    before = plain_logits(model, [4, 5])
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    engine = LocalEngine(adapted)
    with engine.session():
        engine.allocate(1, 8)
        read(engine, {0: [4]})
        logits = engine.step(torch.tensor([5]), torch.tensor([True]))[0]
    torch.testing.assert_close(logits, plain_logits(adapted, [4, 5]), **LOGIT_TOLERANCE)
    assert (logits - before).abs().max() > 0.01


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: MistralForCausalLM(MistralConfig(**_SMALL, sliding_window=4)), "sliding"),
        (lambda: MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1)), "recurrent state"),
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)).transformer,
            "is not a causal",
        ),
    ],
)
def test_models_that_cannot_be_run_are_refused_with_the_reason(model: object, reason: str):
    with pytest.raises(ValueError, match=reason):
        LocalEngine(model())  # type: ignore[operator]


_SMALL = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
