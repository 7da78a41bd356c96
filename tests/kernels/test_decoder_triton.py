"""The whole relay decoded by Triton's kernels writes what it writes by their definitions."""

from __future__ import annotations

import sys

import pytest
import torch
from fake_model import relay_engine
from random_models import random_model
from relay_kernels import backends
from small_vocabulary import VOCAB_SIZE, small_protocol, spell

from benchmarks.bench_relay_decode import ForcedCommands
from relay_lightning.engine import blocks
from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.types import Completion, Prompt

NUM_PROMPTS, BUDGET, NUM_ROWS = 3, 14, 2
LOG_PROB_TOLERANCE = 1e-4
"""fp32, sums of a few hundred terms in another order."""


def use_triton(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Has every op that can run in Triton do so, as on a CUDA device; returns the ops that did, as they do."""
    choose, ops = backends.choose_backend, set[str]()

    def triton_first(op: str, backend: str, device: torch.device, **reasons: str | None) -> str:
        try:
            chosen = choose(op, "triton", device, **reasons)
        except RuntimeError:
            return choose(op, backend, device, **reasons)
        ops.add(op)
        return chosen

    monkeypatch.setattr(backends, "choose_backend", triton_first)
    monkeypatch.setattr(sys.modules["relay_kernels.relay_step"], "choose_backend", triton_first)
    monkeypatch.setattr(blocks, "FUSED_DEVICES", {"cpu", "cuda"})
    return ops


def decode(device: torch.device, sampling: SamplingParams) -> list[Completion]:
    scripts = torch.full((NUM_PROMPTS, BUDGET), -1)
    for index, row in enumerate(scripts):
        command = torch.tensor(spell("<call>4</call>"))
        row[2 + index : 2 + index + len(command)] = command
    pair = [random_model("qwen3", VOCAB_SIZE).to(device), random_model("llama", VOCAB_SIZE, seed=1).to(device)]
    engine = relay_engine(*map(LocalModel, pair), small_protocol(), max_num_seqs=NUM_ROWS)
    requests = [RelayRequest(Prompt(index, (2 + index, *range(3, 4 + index)))) for index in range(NUM_PROMPTS)]
    return engine.decode(requests, sampling, seed=5, policy=ForcedCommands(scripts.to(device)), eos_policy="return")


def test_it_writes_the_same_tokens_with_the_same_log_probs(monkeypatch, device):
    sampling = SamplingParams(max_completion_tokens=BUDGET, temperature=0.8, top_p=0.9)
    expected = decode(torch.device("cpu"), sampling)
    ops = use_triton(monkeypatch)
    for ours, theirs in zip(decode(device, sampling), expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.token_source == theirs.token_source
        assert ours.spans == theirs.spans
        for name in ("log_probs", "sampling_log_probs"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=LOG_PROB_TOLERANCE)
    assert any(completion.spans for completion in expected)
    # The attention appends by itself, and of few rows the linear layers come with their norm and their gate.
    assert ops == {"relay_step", "decode_attention", "norm_linear", "rotate_heads", "add_rms_norm"}
