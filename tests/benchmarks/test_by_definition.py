"""A run with one op by its definition does the same work in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from random_models import random_model
from relay_kernels.linear_log_probs.reference import linear_log_probs_naive

from benchmarks.by_definition import DECODING, TRAINING, by_definition
from relay_lightning.modules import log_probs
from relay_lightning.modules.log_probs import token_log_probs


@pytest.mark.parametrize("op", [op for op in (*DECODING, *TRAINING) if op != "linear_log_probs"])
def test_an_op_is_asked_for_its_definition_within_and_as_before_behind(monkeypatch, op):
    for user in (users := (DECODING | TRAINING)[op]):
        monkeypatch.setattr(user, op, lambda *arguments, **options: asked.append((arguments, options)))
    expected = [((1,), {"backend": backend, "other": 2}) for backend in ("reference", "auto", "reference", "native")]
    for user in users:
        asked = []
        for backend in ("auto", "native"):
            with by_definition(op):
                getattr(user, op)(1, backend=backend, other=2)
            getattr(user, op)(1, backend=backend, other=2)
        assert asked == expected


def test_log_probs_are_those_of_whole_logits_within():
    model, tokens = random_model("qwen3", 30), torch.arange(24).view(2, 12)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[:, 0] = False
    usual = token_log_probs(model, tokens, mask)
    with by_definition("linear_log_probs"):
        assert log_probs.linear_log_probs is linear_log_probs_naive
        plain = token_log_probs(model, tokens, mask)
    torch.testing.assert_close(plain.log_probs, usual.log_probs)
    torch.testing.assert_close(plain.entropy, usual.entropy)
