"""Students in 4 bits: they decode, train through their adapters, and are saved without their base."""

from __future__ import annotations

import copy

import pytest
import torch
from plain_steps import logits_behind

from relay_lightning import SamplingParams, load_relay
from relay_lightning.engine.local import LocalModel
from relay_lightning.models.architecture import describe
from relay_lightning.models.loading import load_model
from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.models.quantization import dequantized
from relay_lightning.models.settings import LoadSettings
from relay_lightning.modules.log_probs import token_log_probs
from relay_lightning.modules.reference import ReferencePolicy

pytest.importorskip("bitsandbytes")

NF4 = LoadSettings(dtype="bf16", quantization="nf4")
LORA = LoRASettings(rank=4)


@pytest.fixture
def student(small_pair):
    model = load_model(small_pair.student, settings=NF4)
    torch.manual_seed(0)
    add_lora(model, LORA)
    return model


def decode(model, num_steps=3):
    return logits_behind(LocalModel(model), torch.tensor([[3], [4]]) + torch.arange(num_steps))


def train(model):
    token_ids = torch.arange(40).view(2, 20)
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    mask[:, 0] = False
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        token_log_probs(model, token_ids, mask).log_probs.sum().neg().backward()
        optimizer.step()


def test_training_is_unchanged_when_decoding_comes_first(student):
    """A no-grad eval() forward of bitsandbytes may repack a layer in place, after which its gradients are None."""
    undisturbed = copy.deepcopy(student)
    before = {name: value.clone() for name, value in student.state_dict().items() if "lora_" not in name}
    decode(student)
    train(student)
    train(undisturbed)
    after = student.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    for (name, trained), (_, expected) in zip(student.named_parameters(), undisturbed.named_parameters(), strict=True):
        if trained.requires_grad:
            assert trained.grad is not None, name
            assert trained.grad.abs().sum() > 0, name
            assert torch.equal(trained, expected), name


def test_adapters_are_fp32_and_the_base_is_left_as_it_was(student):
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            assert parameter.dtype is torch.float32
            assert parameter.requires_grad
        else:
            assert parameter.dtype in (torch.bfloat16, torch.uint8)
            assert not parameter.requires_grad
    assert "nf4, bfloat16" in describe(student)


def test_logits_are_those_of_the_weights_that_four_bits_stand_for(small_pair):
    quantized = load_model(small_pair.student, settings=NF4)
    whole = dequantized(load_model(small_pair.student, settings=NF4))
    token_ids = torch.arange(60).view(3, 20)
    with torch.no_grad():
        expected, found = whole(token_ids).logits, quantized(token_ids).logits.float()
        original = load_model(small_pair.student)(token_ids).logits
    assert (found - expected).abs().mean() < 0.25 * (original - expected).abs().mean()


def test_a_quantised_pair_answers(small_pair):
    relay = load_relay(small_pair.student, small_pair.teacher, student_loading=NF4, teacher_loading=NF4)
    (answer,) = relay.generate(["How many kebu?"], SamplingParams(max_completion_tokens=12, temperature=0.0))
    assert answer.num_tokens > 0


def test_reference_is_the_quantised_student_without_adapters(student, small_pair):
    token_ids = torch.arange(40).view(2, 20)
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    mask[:, 0] = False
    reference = ReferencePolicy(student, lambda: pytest.fail("loaded"), has_adapters=True, temperature=1.0)
    train(student)
    with torch.no_grad():
        initial = token_log_probs(load_model(small_pair.student, settings=NF4), token_ids, mask).log_probs
        assert torch.equal(reference.log_probs(token_ids, mask), initial)
        assert not torch.allclose(token_log_probs(student, token_ids, mask).log_probs, initial)
