"""`relay_advantages` in Triton, held to its definition."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from relay_kernels import relay_advantages
from relay_kernels.relay_advantages import triton_impl

CHOICES = list(product(("difficulty_aware", "simple"), ("group", "none", "batch"), ("grpo", "rloo")))


def draw(num_samples, device, *, dtype=torch.int64, seed=0):
    """Judged samples of all sorts: right or wrong, silent or calling, empty ones too."""
    generator = torch.Generator().manual_seed(seed)
    num_calls = torch.randint(0, 3, (num_samples,), generator=generator)
    num_tokens = torch.randint(0, 200, (num_samples,), generator=generator)
    num_teacher = (num_tokens * torch.rand(num_samples, generator=generator)).long() * (num_calls > 0)
    is_correct = torch.rand(num_samples, generator=generator) < 0.3
    return is_correct.to(device), *(counts.to(device, dtype) for counts in (num_teacher, num_tokens, num_calls))


def in_double(samples, group_size, reward, scale_rewards, advantage_estimator):
    """Rewards by the reference and, from them, advantages in fp64."""
    rewards, plain = relay_advantages(
        *samples, group_size, reward, scale_rewards, advantage_estimator, backend="reference"
    )
    grouped = rewards.double().view(-1, group_size)
    deviation = grouped - grouped.mean(1, keepdim=True)
    if advantage_estimator == "rloo":
        truth = deviation * group_size / (group_size - 1)
    else:
        std = {"group": grouped.std(1, keepdim=True), "batch": grouped.std(), "none": torch.tensor(1.0 - 1e-4)}
        truth = deviation / (std[scale_rewards].to(grouped) + 1e-4)
    truth[grouped.amax(1) == grouped.amin(1)] = 0.0
    return rewards, plain, truth.view(-1)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("choice", CHOICES, ids=":".join)
@pytest.mark.parametrize("tile", [1024, 32], ids=["one_tile", "many_tiles"])
@pytest.mark.parametrize("group_size", [2, 5, 8])
def test_errs_at_most_twice_as_much_as_the_reference(device, choice, tile, group_size, monkeypatch, assert_as_exact_as):
    monkeypatch.setattr(triton_impl, "TILE", tile)
    samples = draw(17 * group_size, device)
    rewards, plain, truth = in_double(samples, group_size, *choice)
    ours = relay_advantages(*samples, group_size, *choice, backend="triton")
    torch.testing.assert_close(ours[0], rewards, rtol=0.0, atol=1e-7)
    # Rewards may differ by one rounding, which a small standard deviation magnifies as much as the advantage itself.
    assert_as_exact_as(ours[1], plain, truth, scale=max(1.0, float(truth.abs().max())))


@pytest.mark.parametrize("exploration", [True, False])
def test_bonus_and_exploration_reach_the_kernel(device, exploration):
    samples = draw(64, device)
    options = {"bonus": 1.1, "exploration": exploration}
    expected = relay_advantages(*samples, 4, **options, backend="reference")
    ours = relay_advantages(*samples, 4, **options, backend="triton")
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_equal_rewards_give_an_advantage_of_exactly_zero(device, scale_rewards):
    third = torch.full((6,), 3, device=device)
    samples = torch.ones(6, dtype=torch.bool, device=device), third // 3, third, third // 3
    rewards, advantages = relay_advantages(*samples, 3, scale_rewards=scale_rewards, backend="triton")
    assert len(set(rewards.tolist())) == 1
    assert not advantages.any()


def test_one_group_no_group_and_narrow_or_strided_counts(device):
    for num_samples, dtype in ((2, torch.int32), (0, torch.int64), (12, torch.int16)):
        samples = draw(num_samples, device, dtype=dtype)
        strided = [tensor.repeat_interleave(2)[::2] for tensor in samples]
        expected = relay_advantages(*samples, 2, backend="reference")
        for mine, theirs in zip(relay_advantages(*strided, 2, backend="triton"), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
