"""Advantages of given rewards, and what one step on them does to a real policy."""

from __future__ import annotations

import pytest
import torch
from relay_kernels import linear_log_probs, relay_advantages

from relay_lightning.objectives import group_advantages, grpo_loss
from relay_lightning.types import TokenSource, TrainBatch


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 0.0, 3.0])
    std = torch.tensor([0.5**0.5, 4.5**0.5]).repeat_interleave(2)
    torch.testing.assert_close(group_advantages(rewards, 2), torch.tensor([0.5, -0.5, -1.5, 1.5]) / (std + 1e-4))
    torch.testing.assert_close(group_advantages(rewards, 2, "none"), torch.tensor([0.5, -0.5, -1.5, 1.5]))
    torch.testing.assert_close(
        group_advantages(rewards, 2, "batch"), torch.tensor([0.5, -0.5, -1.5, 1.5]) / (2.0**0.5 + 1e-4)
    )
    rloo = group_advantages(rewards, 4, advantage_estimator="rloo")
    torch.testing.assert_close(rloo, torch.tensor([0.0, -4.0 / 3.0, -4.0 / 3.0, 8.0 / 3.0]))


def test_advantages_are_those_of_the_op():
    counts = torch.tensor([3, 0, 5, 1])
    op_rewards, op_advantages = relay_advantages(torch.tensor([True, True, False, True]), counts, counts + 9, counts, 2)
    assert torch.equal(group_advantages(op_rewards, 2), op_advantages)


@pytest.mark.parametrize(
    ("rewards", "options", "name"),
    [
        (torch.zeros(4), {"group_size": 1}, "group_size"),
        (torch.zeros(4), {"group_size": 3}, "group_size"),
        (torch.zeros(2, 2), {"group_size": 2}, "rewards"),
        (torch.zeros(4, dtype=torch.int64), {"group_size": 2}, "rewards"),
        (torch.zeros(4), {"group_size": 2, "scale_rewards": "max"}, "scale_rewards"),
        (torch.zeros(4), {"group_size": 2, "advantage_estimator": "gae"}, "advantage_estimator"),
    ],
)
def test_error_names_the_argument_when_it_is_wrong(rewards, options, name):
    with pytest.raises(ValueError, match=name):
        group_advantages(rewards, **options)


def log_probs_of(hidden, head, token_ids):
    num_rows, num_tokens = token_ids.shape
    log_probs, _ = linear_log_probs(hidden.flatten(0, 1), head, token_ids.flatten())
    return log_probs.view(num_rows, num_tokens)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo", "cispo"])
def test_one_step_makes_the_better_sample_likelier(loss_type):
    """Reward -> advantage -> log-probability -> loss -> step, on a linear policy: the four samples of a prompt."""
    generator = torch.Generator().manual_seed(0)
    num_rows, num_tokens, vocab_size = 4, 5, 11
    token_ids = torch.randint(vocab_size, (num_rows, num_tokens), generator=generator)
    hidden = torch.randn(num_rows, num_tokens, 32, generator=generator)
    head = torch.randn(vocab_size, 32, generator=generator).mul(0.1).requires_grad_()
    before = log_probs_of(hidden, head, token_ids).detach()
    ones = torch.ones(num_rows, num_tokens, dtype=torch.bool)
    batch = TrainBatch(
        token_ids=token_ids,
        attention_mask=ones,
        loss_mask=ones,
        token_source=torch.full((num_rows, num_tokens), TokenSource.STUDENT, dtype=torch.uint8),
        advantages=group_advantages(torch.tensor([1.5, 0.7, 0.0, 0.0]), num_rows),
        rollout_log_probs=before,
        old_log_probs=None,
        reference_log_probs=None,
        num_step_loss_tokens=ones.sum().float(),
        num_step_rollouts=torch.tensor(float(num_rows)),
    )
    options = {"loss_type": loss_type, "max_completion_tokens": num_tokens, "epsilon_high": 2.0}
    grpo_loss(log_probs_of(hidden, head, token_ids), batch, **options).loss.backward()
    with torch.no_grad():
        change = (log_probs_of(hidden, head - 0.1 * head.grad, token_ids) - before).sum(dim=1)
    assert change[0] > change[1] > change[2:].max()
    assert change[0] > 0.0 > change[2:].min()
