"""Log-probabilities of a model's tokens against the plain way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from relay_lightning.models.lora import LoRASettings, add_lora
from relay_lightning.modules.log_probs import fixed_log_probs, token_log_probs
from relay_lightning.modules.reference import ReferencePolicy


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).train()


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(1))


def random_mask(token_ids: Tensor) -> Tensor:
    mask = torch.rand(token_ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    mask[:, 0] = False
    return mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_those_of_whole_logits(
    model: Qwen3ForCausalLM, token_ids: Tensor, temperature: float
) -> None:
    mask = random_mask(token_ids)
    logits = model(input_ids=token_ids).logits[:, :-1] / temperature
    distribution = torch.distributions.Categorical(logits=logits)
    naive = torch.zeros(token_ids.shape)
    naive[:, 1:] = distribution.log_prob(token_ids[:, 1:])
    entropy = torch.zeros(token_ids.shape)
    entropy[:, 1:] = distribution.entropy()
    weights = torch.randn(token_ids.shape, generator=torch.Generator().manual_seed(3)) * mask
    expected = torch.autograd.grad((naive * weights).sum(), list(model.parameters()))

    result = token_log_probs(model, token_ids, mask, temperature)

    torch.testing.assert_close(result.log_probs, naive * mask)
    torch.testing.assert_close(result.entropy, entropy * mask)
    actual = torch.autograd.grad((result.log_probs * weights).sum(), list(model.parameters()))
    torch.testing.assert_close(actual, expected)


def test_padding_on_the_right_changes_nothing(model: Qwen3ForCausalLM, token_ids: Tensor) -> None:
    mask = random_mask(token_ids)
    padded_ids = torch.cat([token_ids, torch.full((3, 4), 7)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    plain = token_log_probs(model, token_ids, mask)
    padded = token_log_probs(model, padded_ids, padded_mask)
    torch.testing.assert_close(padded.log_probs[:, :9], plain.log_probs)
    assert not padded.log_probs[:, 9:].any()


def test_every_weight_gets_a_zero_gradient_when_nothing_is_selected(model: Qwen3ForCausalLM, token_ids: Tensor) -> None:
    result = token_log_probs(model, token_ids, torch.zeros_like(token_ids, dtype=torch.bool))
    gradients = torch.autograd.grad(result.log_probs.sum(), list(model.parameters()))
    assert not any(gradient.any() for gradient in gradients)


@pytest.fixture
def dropping() -> Qwen3ForCausalLM:
    """A model in training whose attention and trained adapters drop out."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, attention_dropout=0.5,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    add_lora(model, LoRASettings(rank=2, dropout=0.5))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model.train()


def test_fixed_log_probs_have_no_dropout_and_leave_the_mode_and_the_generator(
    dropping: Qwen3ForCausalLM, token_ids: Tensor
) -> None:
    mask = random_mask(token_ids)
    assert not torch.equal(*(token_log_probs(dropping, token_ids, mask).log_probs for _ in range(2)))
    state, modes = torch.get_rng_state(), [module.training for module in dropping.modules()]
    first, second = (fixed_log_probs(dropping, token_ids, mask) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in dropping.modules()] == modes
    assert torch.equal(first, token_log_probs(dropping.eval(), token_ids, mask).log_probs)


def test_the_reference_has_no_dropout_when_it_is_the_student_in_training(
    dropping: Qwen3ForCausalLM, token_ids: Tensor
) -> None:
    mask = random_mask(token_ids)
    reference = ReferencePolicy(dropping, lambda: pytest.fail("loaded"), has_adapters=True, temperature=1.0)
    first, second = (reference.log_probs(token_ids, mask) for _ in range(2))
    assert torch.equal(first, second)
    dropping.eval().disable_adapters()
    assert torch.equal(first, token_log_probs(dropping, token_ids, mask).log_probs)
