"""`relay_advantages`: 1,024 judged samples in groups of 8. Bytes do not matter here, the launch does."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial

import torch
from relay_kernels import relay_advantages
from relay_kernels.relay_advantages.reference import (
    STD_EPSILON,
    group_advantages_reference,
    relay_advantages_reference,
)
from torch import Tensor

from benchmarks.kernels.bars import Bar, launches, microseconds, speedup
from benchmarks.kernels.case import Case, compiled
from benchmarks.kernels.gate import Check, judge
from benchmarks.kernels.target import Target

GROUP_SIZE = 8
LONGEST = 2048


@dataclass(frozen=True, slots=True)
class Samples:
    """N judged samples; the fields are the op's arguments."""

    is_correct: Tensor
    num_teacher_tokens: Tensor
    num_completion_tokens: Tensor
    num_calls: Tensor


def draw(target: Target, num_samples: int) -> Samples:
    """Samples of every case: right and wrong, without calls and with calls for up to half of their tokens."""
    num_tokens = target.integers(1, LONGEST, num_samples)
    num_calls = target.integers(0, 3, num_samples)
    percent = target.integers(1, 51, num_samples) * num_calls.clamp(max=1)
    return Samples(target.integers(0, 3, num_samples) == 0, num_tokens * percent // 100, num_tokens, num_calls)


def call(samples: Samples, backend: str) -> tuple[Tensor, Tensor]:
    arguments = (getattr(samples, field.name) for field in fields(samples))
    return relay_advantages(*arguments, group_size=GROUP_SIZE, backend=backend)


def reference(samples: Samples) -> tuple[Tensor, Tensor]:
    """The reference without the checks before it."""
    arguments = (getattr(samples, field.name) for field in fields(samples))
    return relay_advantages_reference(*arguments, GROUP_SIZE, "difficulty_aware", "group", "grpo", 1.5, True)


def check(samples: Samples, backend: str) -> list[Check]:
    """The advantages are judged against those of the reference's rewards in fp64.

    A mean is right to one rounding of the rewards, which the division by a small deviation magnifies.
    """
    rewards, advantages = call(samples, backend)
    plain_rewards, plain_advantages = call(samples, "reference")
    wide = plain_rewards.double()
    truth = group_advantages_reference(wide, GROUP_SIZE, "group", "grpo")
    grouped = wide.view(-1, GROUP_SIZE)
    magnified = grouped.abs().amax(1) / (grouped.std(1) + STD_EPSILON)
    is_flat = grouped.amax(1) == grouped.amin(1)  # Its advantages are 0, exactly.
    floor = torch.finfo(torch.float32).eps * float(magnified.masked_fill(is_flat, 1.0).max())
    return [
        judge("rewards", rewards, plain_rewards, wide),
        judge("advantages", advantages, plain_advantages, truth, floor=floor),
    ]


def cases(target: Target) -> list[Case]:
    num_samples = 1024 if target.is_full else 64
    return [
        Case(
            op="relay_advantages",
            setting="difficulty-aware, group scaling",
            shape={"N": num_samples, "G": GROUP_SIZE},
            make_inputs=lambda: draw(target, num_samples),
            ours=partial(call, backend=target.backend),
            check=partial(check, backend=target.backend),
            num_bytes=num_samples * (1 + 3 * 8 + 2 * 4),  # A bool and three int64 in, two fp32 out.
            bars=(
                Bar("launches", launches, 1),
                Bar("us in a graph", microseconds, 5),
                Bar("times as fast as the reference", speedup("reference"), 5, is_upper=False),
            ),
            rivals={"reference": reference, "torch.compile": compiled(reference)},
            ceiling=None,
        )
    ]
