"""Log-probabilities of a model's tokens against the plain way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from relay_lightning.modules.log_probs import token_log_probs


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
