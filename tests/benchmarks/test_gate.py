"""The gate of the kernel benchmark: what it lets pass, and what it must not."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.kernels import decode_attention, linear_log_probs, relay_advantages, relay_step
from benchmarks.kernels.gate import Check, judge, judge_equal
from benchmarks.kernels.target import Target


def red_names(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.is_green}


@pytest.mark.parametrize(("factor", "is_allowed"), [(1.9, True), (2.5, False)])
def test_error_is_judged_by_that_of_plain_pytorch(factor, is_allowed):
    truth = torch.ones(4, dtype=torch.float64)
    plain = (truth + 1e-3).float()
    assert judge("x", (truth + factor * 1e-3).float(), plain, truth).is_green == is_allowed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gate_is_red_when_a_result_is_not_finite(bad):
    truth = torch.ones(4, dtype=torch.float64)
    actual = truth.float()
    actual[2] = bad
    assert not judge("x", actual, truth.float(), truth).is_green


def test_gate_is_red_when_the_shape_or_an_integer_differs():
    truth = torch.ones(4, dtype=torch.float64)
    assert not judge("x", truth[:3], truth, truth).is_green
    assert judge_equal("n", torch.tensor([1, 2]), torch.tensor([1, 3])) == Check("n", 1.0, 0.0)


def checks_when_broken(monkeypatch, module, name, broken, index):
    """The checks of one case with the op replaced, which the case's own call looks up in its module."""
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    case = module.cases(Target(torch.device("cpu"), "broken", torch.Generator().manual_seed(0)))[index]
    return case.check(case.make_inputs())


@pytest.mark.parametrize("index", [0, 1])
def test_gate_is_red_when_a_neighbour_of_the_token_is_drawn(monkeypatch, index):
    def broken(op):
        def step(logits, state, *, backend, **options):
            op(logits, state, backend="reference", **options)
            if backend == "broken":
                state.last_token.add_(1)

        return step

    assert "draw" in red_names(checks_when_broken(monkeypatch, relay_step, "relay_step", broken, index))


def test_gate_is_red_when_the_log_prob_is_that_of_the_cut_distribution(monkeypatch):
    def broken(op):
        def step(logits, state, *, backend, **options):
            op(logits, state, backend="reference", **options)
            if backend == "broken":
                state.log_probs.copy_(state.sampling_log_probs)

        return step

    assert red_names(checks_when_broken(monkeypatch, relay_step, "relay_step", broken, 1)) == {"log_probs"}


def test_gate_is_red_when_a_cached_token_is_lost(monkeypatch):
    def broken(op):
        def attend(query, key_cache, value_cache, cache_seqlens, *, backend, **new):
            if backend == "broken":
                key_cache, value_cache = key_cache[:, 1:], value_cache[:, 1:]
                cache_seqlens = cache_seqlens - 1
            return op(query, key_cache, value_cache, cache_seqlens, backend="reference", **new)

        return attend

    assert red_names(checks_when_broken(monkeypatch, decode_attention, "decode_attention", broken, 0)) == {"output"}


def test_gate_is_red_when_only_the_target_has_a_gradient(monkeypatch):
    """The error that a tolerance for the largest entries does not see."""

    class OnlyTargets(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight, targets):
            ctx.save_for_backward(targets)
            return weight.clone()

        @staticmethod
        def backward(ctx, grad):
            (targets,) = ctx.saved_tensors
            return torch.zeros_like(grad).index_copy(0, targets.unique(), grad[targets.unique()]), None

    def broken(op):
        def head(hidden, weight, targets, *, backend):
            weight = OnlyTargets.apply(weight, targets) if backend == "broken" else weight
            return op(hidden, weight, targets, backend="reference")

        return head

    checks = checks_when_broken(monkeypatch, linear_log_probs, "linear_log_probs", broken, 1)
    assert red_names(checks) == {"grad_weight of others"}


def test_gate_is_red_when_the_deviation_is_biased(monkeypatch):
    def broken(op):
        def advantages(*samples, group_size, backend):
            rewards, values = op(*samples, group_size=group_size, backend="reference")
            biased = (group_size / (group_size - 1)) ** 0.5
            return rewards, values * biased if backend == "broken" else values

        return advantages

    checks = checks_when_broken(monkeypatch, relay_advantages, "relay_advantages", broken, 0)
    assert red_names(checks) == {"advantages"}
