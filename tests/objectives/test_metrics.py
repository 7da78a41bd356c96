"""The logged numbers alone."""

from __future__ import annotations

import torch

from relay_lightning.objectives.metrics import extremes, masked_mean, sampling_metrics

VALUES = torch.tensor([[1.0, 5.0, 100.0], [3.0, -100.0, 100.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_extremes_look_at_the_mask_only():
    logged = extremes("ratio", VALUES, MASK)
    assert {name: value.item() for name, value in logged.items()} == {
        "ratio/mean": 3.0,
        "ratio/max": 5.0,
        "ratio/min": 1.0,
    }


def test_an_empty_mask_gives_zeros():
    empty = torch.zeros_like(MASK)
    assert masked_mean(VALUES, empty).item() == 0.0
    assert all(value.item() == 0.0 for value in extremes("ratio", VALUES, empty).values())


def test_sampling_difference_uses_the_present_policy_when_old_log_probs_are_missing():
    present, rollout = VALUES.clone().requires_grad_(), VALUES - 0.5
    logged = sampling_metrics(present, None, rollout, MASK)
    assert logged["sampling/sampling_logp_difference/mean"].item() == 0.5
    assert logged["sampling/sampling_logp_difference/max"].item() == 0.5
    assert not logged["sampling/sampling_logp_difference/mean"].requires_grad
    logged = sampling_metrics(present, rollout - 1.0, rollout, MASK)
    assert logged["sampling/sampling_logp_difference/mean"].item() == 1.0
