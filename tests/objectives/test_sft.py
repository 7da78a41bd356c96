"""The supervised loss: a token mean over the whole step, blind to what is masked."""

from __future__ import annotations

import pytest
import torch

from relay_lightning.objectives import sft_loss


def test_loss_is_the_mean_negative_log_prob_of_loss_tokens():
    log_probs = torch.tensor([[-1.0, -2.0, torch.nan], [-4.0, -torch.inf, 7.0]], requires_grad=True)
    loss_mask = torch.tensor([[True, True, False], [True, False, False]])
    loss = sft_loss(log_probs, loss_mask, num_tokens=3)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(7.0 / 3.0)
    torch.testing.assert_close(log_probs.grad, -loss_mask.float() / 3.0)


def test_split_batch_gives_the_gradient_of_the_whole_batch():
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(4, 6, generator=generator)
    loss_mask = torch.rand(4, 6, generator=generator) < torch.tensor([[0.9], [0.3], [0.6], [0.1]])
    num_tokens = loss_mask.sum()
    whole = sft_loss(log_probs, loss_mask, num_tokens)
    parts = [
        sft_loss(log_probs[rows], loss_mask[rows], num_tokens, num_micro_batches=2)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_loss_is_zero_when_nothing_is_to_be_learnt():
    assert float(sft_loss(torch.full((2, 3), -1.0), torch.zeros(2, 3, dtype=torch.bool), num_tokens=0)) == 0.0
