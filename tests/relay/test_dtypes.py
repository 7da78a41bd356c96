"""One engine in several precisions: nothing that was kept in one of them is used in another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import permutations

import pytest
import torch
from fake_model import UniformEngine, relay_engine
from random_models import random_model
from small_vocabulary import FIRST_LETTER, VOCAB_SIZE, small_protocol
from transformers import PreTrainedModel

from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.policies import FixedPolicy
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.types import Completion, Prompt

PRECISIONS: dict[str, tuple[torch.dtype, Callable[[], AbstractContextManager[object]]]] = {
    "fp32": (torch.float32, nullcontext),
    "autocast": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
    "bf16": (torch.bfloat16, nullcontext),
}
"""dtype of the weights, and what decoding runs in."""


def new_pair() -> list[PreTrainedModel]:
    """Models of random weights, always the same."""
    return [random_model("qwen3", VOCAB_SIZE), random_model("gpt_neox", VOCAB_SIZE, seed=1)]


WEIGHTS = [model.state_dict() for model in new_pair()]


def decode(engine: UniformEngine, precision: str) -> list[Completion]:
    dtype, context = PRECISIONS[precision]
    for model, weights in zip((engine.student, engine.teacher.model), WEIGHTS, strict=True):
        model.model.to(dtype).load_state_dict(weights)
    requests = [RelayRequest(Prompt(index, (2 + index, *[FIRST_LETTER] * 20))) for index in range(3)]
    with context():
        return engine.decode(requests, SamplingParams(12), policy=FixedPolicy(n=2, every=3))


def new_engine(pair: list[PreTrainedModel]) -> UniformEngine:
    return relay_engine(*map(LocalModel, pair), small_protocol(), kv_cache_gb=0.001)


@pytest.mark.parametrize("order", list(permutations(PRECISIONS)), ids=" ".join)
def test_an_engine_decodes_in_one_precision_after_another(order: tuple[str, ...]):
    pair = new_pair()
    engine = new_engine(pair)
    for precision in order:
        assert decode(engine, precision) == decode(new_engine(pair), precision)
        assert engine.teacher.runner.cache.num_bytes <= 10**6, "blocks are as many as the memory holds"
