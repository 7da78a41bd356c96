"""Bytes that passes over a model keep and need, found by running the real code over fake tensors.

Two shallow models are run; what a layer adds is the difference, and the rest follows.

Shapes: B rows, T tokens, D hidden size, V vocabulary, S slots, C capacity of a slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TypeVar

import torch

from relay_lightning.engine.local import LocalEngine
from relay_lightning.memory.live_bytes import LiveBytes
from relay_lightning.models.skeleton import ModelPlan, build_skeleton, fake_pass, with_fake_weights
from relay_lightning.relay.side import MAX_CHUNK_TOKENS

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
    """Bytes of a writer in the decode loop."""

    cache: int
    """Keys and values."""
    workspace: int
    """Highest need of a chunk pass or a step beside the cache."""


Pass = TypeVar("Pass", TrainingPass, DecodePass)


@lru_cache
def training_pass(plan: ModelPlan, num_rows: int, num_tokens: int) -> TrainingPass:
    """Of the student's decoder."""
    return _extrapolate(lambda depth: _run_training(plan, depth, num_rows, num_tokens), plan.num_layers)


@lru_cache
def decode_pass(plan: ModelPlan, num_slots: int, capacity: int, num_prompt_tokens: int) -> DecodePass:
    """Of S slots of C tokens each that read prompts of `num_prompt_tokens` and then write."""
    shape = (num_slots, capacity, min(num_prompt_tokens, capacity - 1))
    return _extrapolate(lambda depth: _run_decode(plan, depth, *shape), plan.num_layers)


def head_workspace(plan: ModelPlan, num_tokens: int, narrow: int, device_type: str, *, is_trained: bool) -> int:
    """Bytes that `linear_log_probs` needs for both passes of `num_tokens` hidden states of `narrow` bytes a number."""
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


def _run_decode(plan: ModelPlan, depth: int, num_slots: int, capacity: int, num_prompt_tokens: int) -> DecodePass:
    num_rows = max(1, min(num_slots, MAX_CHUNK_TOKENS // num_prompt_tokens))
    skeleton = build_skeleton(plan, depth)
    with fake_pass(plan, is_training=False):
        engine = LocalEngine(with_fake_weights(skeleton), max_context=capacity)
        with engine.session(), LiveBytes() as live:
            engine.allocate(num_slots, capacity)
            slots = torch.arange(num_rows)
            # A slot that is all but full: the last chunk sees every column.
            engine.tighten(capacity - num_prompt_tokens)
            engine.extend(slots, torch.zeros(num_rows, num_prompt_tokens, dtype=torch.int64), slots + 1)
            cache = engine.cache_bytes
            engine.step(torch.zeros(num_slots, dtype=torch.int64), torch.ones(num_slots, dtype=torch.bool))
            peak = live.peak
        sampling = SAMPLING_COPIES * 4 * num_slots * engine.vocab_size
        return DecodePass(cache, peak - cache + sampling)


def _extrapolate(run: Callable[[int], Pass], num_layers: int) -> Pass:
    """What a model of `num_layers` gives, from the difference that one layer makes in shallow ones."""
    if num_layers <= FEW_LAYERS + 1:
        return run(num_layers)
    few, more = run(FEW_LAYERS), run(FEW_LAYERS + 1)
    rest = num_layers - FEW_LAYERS
    values = (
        getattr(few, field.name) + rest * (getattr(more, field.name) - getattr(few, field.name))
        for field in fields(few)
    )
    return type(few)(*values)
