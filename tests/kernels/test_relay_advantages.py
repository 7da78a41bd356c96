"""The rewards and advantages of `relay_advantages`: the paper's table, TRL's formulas, and their properties."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from relay_kernels import relay_advantages

TOLERANCE = 1e-5


def compute(samples, group_size, **options):
    """Rewards and advantages of (is_correct, num_teacher_tokens, num_completion_tokens, num_calls) samples."""
    columns = torch.tensor(samples, dtype=torch.int64).view(-1, 4).T
    return relay_advantages(columns[0].bool(), columns[1], columns[2], columns[3], group_size, **options)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        # Student-solvable: correct alone, correct with a call of 3/10, wrong alone, wrong with a call.
        ([(1, 0, 10, 0), (1, 3, 10, 1), (0, 0, 10, 0), (0, 5, 10, 2)], [1.5, 0.7, 0.0, 0.0]),
        # Teacher-dependent: the same without the first.
        ([(1, 1, 10, 1), (1, 3, 10, 1), (0, 0, 10, 0), (0, 5, 10, 2)], [0.9, 0.7, -1.0, 0.0]),
        # Teacher-unsolvable: nobody is right; asking is rewarded by what was delivered.
        ([(0, 0, 10, 0), (0, 3, 10, 1), (0, 0, 10, 0), (0, 5, 10, 2)], [0.0, 0.3, 0.0, 0.5]),
    ],
)
def test_reward_follows_the_row_of_the_group_case(samples, expected):
    rewards, _ = compute(samples, 4)
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_cases_differ_within_a_batch_when_the_groups_differ():
    """The released code looked at the whole batch: one problem solved alone made every group student-solvable.

    Then the punishment of staying silent (-1) and the pay for exploring (rho) never occurred. Here three groups of
    one batch fall into three cases.
    """
    solvable = [(1, 0, 10, 0), (0, 0, 10, 0)]
    dependent = [(1, 2, 10, 1), (0, 0, 10, 0)]
    unsolvable = [(0, 4, 10, 1), (0, 0, 10, 0)]
    rewards, _ = compute(solvable + dependent + unsolvable, 2)
    torch.testing.assert_close(rewards, torch.tensor([1.5, 0.0, 0.8, -1.0, 0.4, 0.0]))


def test_ratio_counts_delivered_tokens_when_more_was_requested():
    """The released code took rho from the n of the command: `<call>500</call>` answered by 5 tokens cost 500.

    The op never sees the request. Five tokens delivered in fifty are a tenth, and a call that delivered nothing (the
    teacher stopped at once) costs nothing yet is a call all the same: it earns 1, not the bonus.
    """
    rewards, _ = compute([(1, 5, 50, 1), (1, 0, 50, 1)], 2)
    torch.testing.assert_close(rewards, torch.tensor([0.9, 1.0]))


def test_exploration_and_bonus_are_options():
    unsolvable, solvable = [(0, 4, 10, 1), (0, 0, 10, 0)], [(1, 0, 10, 0), (1, 4, 10, 1)]
    rewards, _ = compute(unsolvable + solvable, 2, exploration=False, bonus=1.0)
    torch.testing.assert_close(rewards, torch.tensor([0.0, 0.0, 1.0, 0.6]))


def test_simple_reward_is_correctness_less_ratio():
    rewards, _ = compute([(1, 0, 10, 0), (1, 4, 10, 1), (0, 4, 10, 1), (0, 0, 0, 0)], 4, reward="simple")
    torch.testing.assert_close(rewards, torch.tensor([1.0, 0.6, -0.4, 0.0]))


def naive_advantages(rewards, group_size, scale_rewards, advantage_estimator):
    """TRL's formulas, one number at a time."""
    advantages = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        for index, reward in enumerate(group):
            if advantage_estimator == "rloo":
                others = group[:index] + group[index + 1 :]
                advantages.append(reward - sum(others) / len(others))
                continue
            scale = {"group": statistics.stdev(group), "batch": statistics.stdev(rewards)}.get(scale_rewards)
            advantages.append((reward - sum(group) / group_size) / (1.0 if scale is None else scale + 1e-4))
    return advantages


samples_of_groups = st.integers(2, 5).flatmap(
    lambda group_size: st.tuples(
        st.just(group_size),
        st.lists(
            st.tuples(st.booleans(), st.integers(0, 40), st.integers(40, 80), st.integers(0, 3)),
            min_size=group_size,
            max_size=4 * group_size,
        ).map(lambda samples: samples[: len(samples) // group_size * group_size]),
    )
)


@pytest.mark.parametrize("advantage_estimator", ["grpo", "rloo"])
@pytest.mark.parametrize("scale_rewards", ["group", "none", "batch"])
@given(drawn=samples_of_groups)
def test_advantages_equal_naive_formulas(scale_rewards, advantage_estimator, drawn):
    group_size, samples = drawn
    options = {"scale_rewards": scale_rewards, "advantage_estimator": advantage_estimator}
    rewards, advantages = compute(samples, group_size, **options)
    naive = naive_advantages(rewards.tolist(), group_size, **options)
    torch.testing.assert_close(advantages, torch.tensor(naive), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("scale_rewards", ["group", "none", "batch"])
@pytest.mark.parametrize("advantage_estimator", ["grpo", "rloo"])
def test_advantages_are_exactly_zero_when_rewards_of_a_group_are_equal(scale_rewards, advantage_estimator):
    """0.9 in fp32 is not the mean of three times 0.9; divided by eps alone the rest would be an update."""
    equal, mixed = [(1, 1, 10, 1)] * 3, [(1, 0, 10, 0), (0, 0, 10, 0), (1, 1, 10, 1)]
    assert float(torch.full((3,), 0.9).mean()) != float(torch.tensor(0.9))
    options = {"scale_rewards": scale_rewards, "advantage_estimator": advantage_estimator}
    _, advantages = compute(equal + mixed, 3, **options)
    assert advantages[:3].tolist() == [0.0, 0.0, 0.0]
    assert (advantages[3:] != 0.0).all()


@given(drawn=samples_of_groups)
def test_better_reward_never_has_lower_advantage_within_a_group(drawn):
    group_size, samples = drawn
    rewards, advantages = compute(samples, group_size)
    for group in range(len(samples) // group_size):
        rows = slice(group * group_size, (group + 1) * group_size)
        ranked = sorted(zip(rewards[rows].tolist(), advantages[rows].tolist(), strict=True))
        assert all(low[1] <= high[1] + TOLERANCE for low, high in pairwise(ranked))
        assert math.isclose(float(advantages[rows].sum()), 0.0, abs_tol=1e-2)


def test_groups_do_not_see_each_other_when_scaled_by_group():
    first, second = [(1, 0, 10, 0), (0, 0, 10, 0)], [(1, 2, 10, 1), (0, 0, 10, 0)]
    together = compute(first + second, 2)
    apart = [torch.cat(pair) for pair in zip(compute(first, 2), compute(second, 2), strict=True)]
    assert together[0].tolist() == apart[0].tolist()
    assert together[1].tolist() == apart[1].tolist()


def test_result_is_empty_fp32_when_there_are_no_samples():
    for scale_rewards in ("group", "none", "batch"):
        rewards, advantages = compute([], 2, scale_rewards=scale_rewards)
        assert rewards.shape == advantages.shape == (0,)
        assert rewards.dtype == advantages.dtype == torch.float32


def test_strided_inputs_give_what_contiguous_ones_give():
    samples = torch.tensor([(1, 0, 10, 0), (1, 3, 10, 1), (0, 0, 10, 0), (0, 5, 10, 2)])
    columns = [samples[:, column] for column in range(4)]  # stride 4
    strided = relay_advantages(columns[0].bool(), *columns[1:], 2)
    contiguous = relay_advantages(columns[0].bool(), *(column.contiguous() for column in columns[1:]), 2)
    assert [tensor.tolist() for tensor in strided] == [tensor.tolist() for tensor in contiguous]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"group_size": 1}, "group_size"),
        ({"group_size": 3}, "group_size"),
        ({"reward": "dense"}, "reward"),
        ({"scale_rewards": "std"}, "scale_rewards"),
        ({"advantage_estimator": "gae"}, "advantage_estimator"),
        ({"backend": "abacus"}, "backend"),
        ({"is_correct": torch.zeros(2, 2, dtype=torch.bool)}, "is_correct"),
        ({"is_correct": torch.zeros(4)}, "is_correct"),
        ({"num_teacher_tokens": torch.zeros(5, dtype=torch.int64)}, "num_teacher_tokens"),
        ({"num_completion_tokens": torch.ones(4)}, "num_completion_tokens"),
        ({"num_calls": torch.zeros(4, dtype=torch.bool)}, "num_calls"),
        ({"bonus": float("nan")}, "bonus"),
    ],
)
def test_error_names_the_argument_when_it_is_wrong(change, name):
    counts = torch.ones(4, dtype=torch.int64)
    arguments = {
        "is_correct": counts.bool(),
        "num_teacher_tokens": counts,
        "num_completion_tokens": counts,
        "num_calls": counts,
        "group_size": 2,
    }
    with pytest.raises(ValueError, match=name):
        relay_advantages(**(arguments | change))
