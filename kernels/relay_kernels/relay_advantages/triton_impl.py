# ruff: noqa: N803 - compile-time arguments are capitals in Triton
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Rewards and group-relative advantages in Triton, in one launch for any number of groups.

Shapes: N samples, P = N / G groups of G consecutive samples, a tile is [BLOCK_P, BLOCK_G]. With scale_rewards="batch"
one program walks over all tiles twice, once for the standard deviation of the batch; otherwise each tile has its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from relay_kernels.backends import on_device
from relay_kernels.relay_advantages.reference import STD_EPSILON

TILE = 1024
"""Samples of a tile, padding of the groups to a power of two included."""


@triton.jit
def _rewards(
    is_correct_ptr,
    num_teacher_tokens_ptr,
    num_completion_tokens_ptr,
    num_calls_ptr,
    offset,
    mask,
    bonus,
    IS_SIMPLE: tl.constexpr,
    EXPLORATION: tl.constexpr,
):
    """The rewards of a tile of groups, [BLOCK_P, BLOCK_G] fp32; the table of `difficulty_aware_rewards_reference`."""
    is_correct = tl.load(is_correct_ptr + offset, mask=mask, other=0) != 0
    num_teacher = tl.load(num_teacher_tokens_ptr + offset, mask=mask, other=0).to(tl.float32)
    num_tokens = tl.load(num_completion_tokens_ptr + offset, mask=mask, other=1).to(tl.float32)
    rho = num_teacher / tl.maximum(num_tokens, 1.0)
    if IS_SIMPLE:
        rewards = tl.where(is_correct, 1.0, 0.0) - rho
    else:
        has_call = tl.load(num_calls_ptr + offset, mask=mask, other=0) > 0
        solved = tl.max(is_correct.to(tl.int32), axis=1)[:, None] > 0
        solved_alone = tl.max((is_correct & (has_call == 0)).to(tl.int32), axis=1)[:, None] > 0
        when_correct = tl.where(has_call, 1.0 - rho, bonus)
        when_silent = tl.where(solved & (solved_alone == 0), -1.0, 0.0)
        when_called = tl.where(solved == 0, rho, 0.0) if EXPLORATION else tl.zeros_like(rho)
        rewards = tl.where(is_correct, when_correct, tl.where(has_call, when_called, when_silent))
    return rewards


@triton.jit
def _advantages_kernel(
    is_correct_ptr,
    num_teacher_tokens_ptr,
    num_completion_tokens_ptr,
    num_calls_ptr,
    rewards_ptr,
    advantages_ptr,
    num_groups,
    bonus,
    GROUP_SIZE: tl.constexpr,
    IS_SIMPLE: tl.constexpr,
    EXPLORATION: tl.constexpr,
    SCALE: tl.constexpr,
    IS_RLOO: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Rewards and advantages of BLOCK_P groups, or of all of them where SCALE is "batch"."""
    member = tl.arange(0, BLOCK_G)[None, :]
    start = tl.program_id(0) * BLOCK_P
    stop = start + 1
    scale = 1.0
    if SCALE == "batch":
        stop = num_groups
        # Count, mean and squared deviations of the tiles so far, joined by Chan's formula: one pass, no cancellation.
        count = 0.0
        mean = 0.0
        squares = 0.0
        for first in range(0, num_groups, BLOCK_P):
            group = first + tl.arange(0, BLOCK_P)[:, None]
            mask = (group < num_groups) & (member < GROUP_SIZE)
            offset = group.to(tl.int64) * GROUP_SIZE + member
            rewards = _rewards(
                is_correct_ptr,
                num_teacher_tokens_ptr,
                num_completion_tokens_ptr,
                num_calls_ptr,
                offset,
                mask,
                bonus,
                IS_SIMPLE,
                EXPLORATION,
            )
            tile_count = (tl.minimum(num_groups - first, BLOCK_P) * GROUP_SIZE).to(tl.float32)
            tile_mean = tl.sum(tl.where(mask, rewards, 0.0)) / tile_count
            deviation = tl.where(mask, rewards - tile_mean, 0.0)
            step = tile_mean - mean
            squares += tl.sum(deviation * deviation) + step * step * count * tile_count / (count + tile_count)
            mean += step * tile_count / (count + tile_count)
            count += tile_count
        scale = 1.0 / (tl.sqrt(squares / (count - 1.0)) + EPSILON)
    for first in range(start, stop, BLOCK_P):
        group = first + tl.arange(0, BLOCK_P)[:, None]
        mask = (group < num_groups) & (member < GROUP_SIZE)
        offset = group.to(tl.int64) * GROUP_SIZE + member
        rewards = _rewards(
            is_correct_ptr,
            num_teacher_tokens_ptr,
            num_completion_tokens_ptr,
            num_calls_ptr,
            offset,
            mask,
            bonus,
            IS_SIMPLE,
            EXPLORATION,
        )
        mean_of_group = tl.sum(tl.where(mask, rewards, 0.0), axis=1)[:, None] / GROUP_SIZE
        deviation = tl.where(mask, rewards - mean_of_group, 0.0)
        if IS_RLOO:
            advantages = deviation * (GROUP_SIZE / (GROUP_SIZE - 1))
        elif SCALE == "group":
            std = tl.sqrt(tl.sum(deviation * deviation, axis=1)[:, None] / (GROUP_SIZE - 1))
            advantages = deviation / (std + EPSILON)
        else:
            advantages = deviation * scale
        highest = tl.max(tl.where(mask, rewards, float("-inf")), axis=1)[:, None]
        lowest = tl.min(tl.where(mask, rewards, float("inf")), axis=1)[:, None]
        tl.store(rewards_ptr + offset, rewards, mask=mask)
        tl.store(advantages_ptr + offset, tl.where(highest == lowest, 0.0, advantages), mask=mask)


def relay_advantages_triton(
    is_correct: torch.Tensor,
    num_teacher_tokens: torch.Tensor,
    num_completion_tokens: torch.Tensor,
    num_calls: torch.Tensor,
    group_size: int,
    reward: str,
    scale_rewards: str,
    advantage_estimator: str,
    bonus: float,
    exploration: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op: (rewards [N] fp32, advantages [N] fp32)."""
    rewards, advantages = (
        torch.empty(is_correct.shape, dtype=torch.float32, device=is_correct.device) for _ in range(2)
    )
    num_groups = is_correct.shape[0] // group_size
    if num_groups == 0:
        return rewards, advantages
    if is_correct.dtype == torch.bool:
        is_correct = is_correct.contiguous().view(torch.uint8)
    block_g = triton.next_power_of_2(group_size)
    block_p = max(1, min(TILE // block_g, triton.next_power_of_2(num_groups)))
    is_rloo = advantage_estimator == "rloo"
    is_batch = scale_rewards == "batch" and not is_rloo
    with on_device(rewards):
        _advantages_kernel[(1 if is_batch else triton.cdiv(num_groups, block_p),)](
            is_correct.contiguous(),
            num_teacher_tokens.contiguous(),
            num_completion_tokens.contiguous(),
            num_calls.contiguous(),
            rewards,
            advantages,
            num_groups,
            float(bonus),
            GROUP_SIZE=group_size,
            IS_SIMPLE=reward == "simple",
            EXPLORATION=bool(exploration),
            SCALE="batch" if is_batch else scale_rewards,
            IS_RLOO=is_rloo,
            EPSILON=STD_EPSILON,
            BLOCK_P=block_p,
            BLOCK_G=block_g,
            num_warps=4,
        )
    return rewards, advantages
