"""Importance ratios alone: what they are inside and outside their mask."""

from __future__ import annotations

import math

import torch

from relay_lightning.objectives.ratio import ROLLOUT_IS_MODES, importance_ratio, rollout_correction

MASK = torch.tensor([[True, True, False], [False, False, False]])
POLICY = torch.tensor([[-1.0, -2.0, 5.0], [3.0, -1.0, 0.0]])
OLD = torch.tensor([[-1.5, -1.0, -9.0], [0.0, 0.0, 0.0]])


def test_token_ratio_is_one_outside_its_mask():
    expected = torch.tensor([[math.exp(0.5), math.exp(-1.0), 1.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(importance_ratio(POLICY, OLD, MASK, "token"), expected)


def test_sequence_ratio_is_the_geometric_mean_of_the_masked_tokens():
    mean = math.exp((0.5 - 1.0) / 2.0)
    expected = torch.tensor([[mean, mean, 1.0], [1.0, 1.0, 1.0]])
    torch.testing.assert_close(importance_ratio(POLICY, OLD, MASK, "sequence"), expected)


def test_rollout_weights_are_one_outside_their_mask_in_every_mode():
    for mode in ROLLOUT_IS_MODES:
        weights = rollout_correction(OLD, OLD - 9.0, MASK, mode, clip_max=3.0)
        assert (weights[~MASK] == 1.0).all()
        assert mode == "none" or (weights[MASK] != 1.0).all()
