"""Bytes that passes over a model keep and need, found by running the real code over fake tensors.

Two shallow models are run; what a layer adds is the difference, and the rest follows.

Shapes: B rows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TypeVar

import torch

from relay_lightning.engine.kv_cache import PagedKVCache
from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.prefiller import MAX_CHUNK_TOKENS
from relay_lightning.memory.live_bytes import LiveBytes
from relay_lightning.models.skeleton import ModelPlan, build_skeleton, fake_pass, with_fake_weights

FEW_LAYERS = 2
HEAD_CHUNK_BYTES = {"cuda": 1 << 28, "cpu": 3 << 27}
"""Logits, or their gradients, that `linear_log_probs` holds at a time: one buffer of the Triton kernel, three of the
reference."""
SAMPLING_COPIES = 3
"""fp32 copies of a step's logits while it is sampled from."""


@dataclass(frozen=True)
class TrainingPass:
    """Bytes of a forward and a backward pass of B rows of T tokens; gradients of weights and the head apart."""

    saved: int
    """Alive after the forward pass, when the head works."""
    peak: int
    """Highest anywhere."""
    hidden: int
    """Of the last hidden states, [B, T, D], and as many of their gradient."""


@dataclass(frozen=True)
class DecodePass:
    """Bytes of a model in the decode loop."""

    kv_bytes_per_token: int
    """Size of the keys and values of one token."""
    workspace: int
    """Highest need of a prefill pass or a decode step, keys and values apart."""


Pass = TypeVar("Pass", TrainingPass, DecodePass)


@lru_cache
def training_pass(plan: ModelPlan, num_rows: int, num_tokens: int) -> TrainingPass:
    """Returns the bytes of a pass over the student's decoder."""
    return _extrapolate(lambda depth: _run_training(plan, depth, num_rows, num_tokens), plan.num_layers)


@lru_cache
def decode_pass(plan: ModelPlan, num_rows: int, block_size: int, longest: int) -> DecodePass:
    """Returns the bytes of decoding B rows of up to `longest` tokens.

    The largest prefill pass is counted: a row that was preempted is read again whole.
    """
    return _extrapolate(lambda depth: _run_decode(plan, depth, num_rows, block_size, longest), plan.num_layers)


def head_workspace(plan: ModelPlan, num_tokens: int, narrow: int, device_type: str, *, is_trained: bool) -> int:
    """Returns the bytes that `linear_log_probs` needs for a forward and a backward pass.

    num_tokens: hidden states. narrow: bytes of a number in them.
    """
    size, vocab = int(plan.config.hidden_size), int(plan.config.vocab_size)
    weight = plan.dtype.itemsize
    wide = 4 if device_type == "cpu" else narrow
    states = num_tokens * size * (2 * narrow + 4)  # the selected states, their gradient, and that in fp32
    copy = vocab * size * wide if wide != weight else 0
    gradient = vocab * size * (wide + (weight if wide != weight else 0)) if is_trained else 0
    chunk = min(HEAD_CHUNK_BYTES[device_type], 3 * 4 * num_tokens * vocab)
    return states + copy + gradient + chunk


def _run_training(plan: ModelPlan, depth: int, num_rows: int, num_tokens: int) -> TrainingPass:
    skeleton = build_skeleton(plan, depth)
    with fake_pass(plan, is_training=True):
        model = with_fake_weights(skeleton)
        for parameter in model.parameters():
            if parameter.requires_grad:  # there already, so that it is not counted
                parameter.grad = torch.zeros_like(parameter)
        embedding = model.get_input_embeddings().weight
        # Past the embedding, whose gradient comes when all else is gone and is no larger than the head's.
        states = torch.zeros(num_rows, num_tokens, embedding.shape[1], dtype=embedding.dtype)
        states.requires_grad_(embedding.requires_grad)
        with LiveBytes() as live:
            hidden = model.get_decoder()(inputs_embeds=states * 1, use_cache=False).last_hidden_state
            saved = live.current
            hidden.sum().backward()
        return TrainingPass(saved, live.peak, hidden.numel() * hidden.itemsize)


def _run_decode(plan: ModelPlan, depth: int, num_rows: int, block_size: int, longest: int) -> DecodePass:
    num_chunk_rows, num_chunk_tokens = largest_chunk(num_rows, longest)
    skeleton = build_skeleton(plan, depth)
    with fake_pass(plan, is_training=False), warnings.catch_warnings():
        # A session compares the addresses of weights, and fake ones have none.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        model = LocalModel(with_fake_weights(skeleton), max_context=longest)
        # From the first pass on, autocast keeps narrow copies of wide weights.
        with torch.no_grad(), model.session() as forward, LiveBytes() as live:
            bytes_per_token = model.kv_bytes_per_token()
            cache = PagedKVCache(1, block_size, num_rows, longest, model.device, model.attention_backend)
            rows, num_new = torch.arange(num_chunk_rows), torch.full((num_chunk_rows,), num_chunk_tokens)
            positions = cache.begin(rows, num_new, num_chunk_tokens, longest)
            forward.extend(torch.zeros_like(positions), positions, cache)
            positions = cache.begin(None, torch.ones(num_rows, dtype=torch.int64), 1, longest)
            forward.step(torch.zeros_like(positions), positions, cache)
            peak = live.peak - cache.num_bytes
        sampling = SAMPLING_COPIES * 4 * num_rows * model.vocab_size
        return DecodePass(bytes_per_token, peak + sampling)


def largest_chunk(num_rows: int, longest: int) -> tuple[int, int]:
    """Returns rows and tokens a row of the largest prefill pass over at most `num_rows` rows of `longest` tokens."""
    num_tokens = min(num_rows * longest, max(MAX_CHUNK_TOKENS, longest))
    num_chunk_rows = -(-num_tokens // longest)
    return num_chunk_rows, num_tokens // num_chunk_rows


def _extrapolate(run: Callable[[int], Pass], num_layers: int) -> Pass:
    """Returns what a model of `num_layers` gives, from the difference that one layer makes in shallow ones."""
    if num_layers <= FEW_LAYERS + 1:
        return run(num_layers)
    few, more = run(FEW_LAYERS), run(FEW_LAYERS + 1)
    rest = num_layers - FEW_LAYERS
    values = (
        getattr(few, field.name) + rest * (getattr(more, field.name) - getattr(few, field.name))
        for field in fields(few)
    )
    return type(few)(*values)
