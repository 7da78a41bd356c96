"""Native ops and their definitions on random calls, half of them spoilt: equal results, or a ValueError from both."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from native_library import needs_library
from relay_kernels import add_rms_norm, append_kv, decode_attention, relay_step, rotate_heads, silu_mul
from relay_kernels.relay_step import CommandTable, RelayStepState, TokenSource, signed_seed
from step_state import put
from torch import Tensor

NUM_CALLS = int(os.environ.get("RELAY_FUZZ_CALLS", "60"))
"""Of each op."""
WILD = [-1, 0, 3, 7, 100, 2**15 - 1, 2**31 - 1, 2**40, 2**61, 2**62, 2**63 - 1, -(2**63)]
NUMBERS = [0.0, 0.5, 1.0, 1.5, -1.0, 1e300, float("nan"), float("inf"), float("-inf"), 10**30, -(2**63)]
FLOATS = [0.0, -1.0, 1e4, float("nan"), float("inf"), float("-inf")]
Call = dict[str, Any]

pytestmark = needs_library


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape)


def attention_call(rng: random.Random) -> Call:
    rows, tokens, kv_heads = rng.randint(0, 4), rng.randint(0, 3), rng.randint(1, 2)
    heads, size, capacity = kv_heads * rng.randint(0, 3), rng.choice([0, 1, 8, 31, 32, 64]), rng.randint(4, 40)
    num_columns = rng.choice([1, 1, 2, 3])  # More than one: blocks of 16 or 32 tokens.
    block_size = capacity if num_columns == 1 else rng.choice([16, 32])
    num_blocks = rows * num_columns + rng.randint(0, 2)
    table = torch.randperm(num_blocks)[: rows * num_columns].view(rows, num_columns)
    return {
        "query": draw(rows, tokens, heads, size), "key_cache": draw(num_blocks, block_size, kv_heads, size),
        "value_cache": draw(num_blocks, block_size, kv_heads, size),
        "cache_seqlens": torch.randint(0, max(num_columns * block_size - tokens, 1), (rows,)),
        "new_key": draw(rows, tokens, kv_heads, size), "new_value": draw(rows, tokens, kv_heads, size),
        "num_new": torch.randint(0, tokens + 1, (rows,)), "block_table": table,
    }  # fmt: skip


def append_call(rng: random.Random) -> Call:
    call = attention_call(rng)
    del call["query"]
    return call


def step_call(rng: random.Random) -> Call:
    num_rows, max_tokens, vocab_size, num_states = rng.randint(1, 5), rng.randint(1, 6), rng.randint(1, 40), 3
    count, cells = rng.randint(0, num_rows), (num_states, vocab_size)
    state = RelayStepState.empty(num_rows, max_tokens)
    for name, stop in (
        ("status", 9), ("num_tokens", max_tokens), ("token_limit", 9), ("span_limit", 9), ("command_state", 3),
        ("command_rule", 4), ("ends_on_teacher_eos", 2),
    ):  # fmt: skip
        put(state, **{name: torch.randint(0, stop, (num_rows,))})
    choices = {"temperature": [0.0, 0.7, 1.0], "min_p": [0.0, 0.1]}
    truncates = rng.random() < 0.7
    if truncates:
        choices |= {"top_k": [0, 1, 5, 2**40], "top_p": [1.0, 0.8]}
    else:
        choices["min_p"] = [0.0]
    choices["seed"] = [signed_seed(seed) for seed in (0, 2**64 - 1, 2**70, 2**63)]
    put(state, **{name: [rng.choice(values) for _ in range(num_rows)] for name, values in choices.items()})
    table = CommandTable(
        next_state=torch.randint(0, num_states, cells).byte(), is_complete=torch.rand(cells) < 0.3,
        is_opening=torch.rand(cells) < 0.3,
        digit_action=torch.randint(0, 3, cells).to(rng.choice([torch.int16, torch.int32])),
        digit_scale=torch.tensor([1, 10, 0]), digit_value=torch.tensor([0, 3, 5]),
    )  # fmt: skip
    return {
        "logits": draw(count, vocab_size), "state": state, "rows": torch.randperm(num_rows)[:count],
        "writer": rng.choice([TokenSource.STUDENT, TokenSource.TEACHER]), "table": rng.choice([table, None]),
        "eos_token_ids": torch.randint(0, vocab_size, (rng.randint(0, 2),)), "truncates": truncates,
    }  # fmt: skip


def norm_call(rng: random.Random) -> Call:
    shape = [rng.randint(0, 3) for _ in range(rng.randint(0, 2))] + [rng.choice([0, 1, 7, 32, 40])]
    return {"hidden": draw(*shape), "weight": draw(shape[-1]), "eps": 1e-6, "residual": draw(*shape)}


def rotate_call(rng: random.Random) -> Call:
    rows, tokens, size = rng.randint(0, 3), rng.randint(0, 3), rng.choice([0, 2, 8, 34])
    angles, heads = (rows, tokens, size), rng.randint(0, 3)
    return {
        "query": draw(rows, tokens, heads, size), "key": draw(rows, tokens, rng.randint(0, 2), size),
        "cosine": draw(*angles), "sine": draw(*angles), "query_norm": draw(size), "key_norm": draw(size), "eps": 1e-6,
    }  # fmt: skip


def silu_call(rng: random.Random) -> Call:
    shape = [rng.randint(0, 3) for _ in range(rng.randint(0, 2))] + [rng.choice([0, 1, 7, 32, 40])]
    return {"gate": draw(*shape), "up": draw(*shape)}


def spoil(value: Any, rng: random.Random) -> Any:
    """Something else in the place of an argument."""
    if is_dataclass(value):
        name = rng.choice([field.name for field in fields(value)])
        return replace(value, **{name: spoil(getattr(value, name), rng)})
    if isinstance(value, Tensor):
        return rng.choice(SPOILERS)(value.clone(), rng)
    return rng.choice(NUMBERS) if isinstance(value, int | float) else value


def put_wild(tensor: Tensor, rng: random.Random) -> Tensor:
    """One value that the dtype holds, anywhere."""
    if tensor.numel():
        place = tuple(rng.randrange(size) for size in tensor.shape)
        tensor[place] = rng.choice(FLOATS) if tensor.is_floating_point() else 0
        if not tensor.is_floating_point() and tensor.dtype != torch.bool:
            limits = torch.iinfo(tensor.dtype)
            tensor[place] = min(max(rng.choice(WILD), limits.min), limits.max)
    return tensor


SPOILERS: list[Callable[[Tensor, random.Random], Tensor]] = [
    *[put_wild] * 6,
    lambda x, rng: x.to(rng.choice([torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64])),
    lambda x, _: x[1:] if x.ndim else x,
    lambda x, _: x[None],
    lambda x, _: x[..., :0] if x.ndim else x,
    lambda x, _: x.reshape(-1)[0] if x.numel() else x,
    lambda x, _: x[:1].expand(x.shape) if x.ndim and x.shape[0] else x,
    lambda x, _: x.repeat_interleave(2, -1)[..., ::2] if x.ndim else x,
    lambda x, _: x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim else x,
    lambda x, _: torch.cat([x, x], -1)[..., : x.shape[-1]] if x.ndim else x,
    lambda x, _: torch.cat([x, x]) if x.ndim else x,
    lambda x, _: x.to("meta"),
]


def copy(value: Any) -> Any:
    """The same strides and values in memory of its own."""
    if is_dataclass(value):
        return replace(value, **{field.name: copy(getattr(value, field.name)) for field in fields(value)})
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    other = torch.empty(value.untyped_storage().nbytes(), dtype=torch.uint8)
    other.untyped_storage().copy_(value.untyped_storage())
    return torch.empty(0, dtype=value.dtype).set_(
        other.untyped_storage(), value.storage_offset(), value.shape, value.stride()
    )


def outcome(op: Callable[..., Any], call: Call, backend: str) -> tuple[str, list[Tensor]]:
    """What became of a call: a word, and every tensor that it returned or may have written."""
    try:
        result = op(**call, backend=backend)
    except ValueError as error:
        if "contiguous for backend='native'" in str(error):
            return "not native", []
        return f"refused: {error}", []
    except RuntimeError as error:
        if "cannot run" in str(error):  # a dtype or strides that only the definition takes
            return "not native", []
        raise
    tensors = [*(result if isinstance(result, tuple) else [result]), *call.values()]
    tensors += [getattr(each, field.name) for each in tensors if is_dataclass(each) for field in fields(each)]
    return "done", [each for each in tensors if isinstance(each, Tensor)]


def is_finite(call: Call) -> bool:
    tensors = [value for value in call.values() if isinstance(value, Tensor) and value.is_floating_point()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors if not tensor.is_meta)


@pytest.mark.parametrize(
    ("op", "make"),
    [
        (append_kv, append_call), (decode_attention, attention_call), (relay_step, step_call),
        (add_rms_norm, norm_call), (rotate_heads, rotate_call), (silu_mul, silu_call),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_native_ops_do_what_their_definitions_do(op: Callable[..., Any], make: Callable[[random.Random], Call]):
    words = []
    for seed in range(NUM_CALLS):
        rng = random.Random(seed)
        torch.manual_seed(seed)
        call = make(rng)
        for _ in range(rng.choice([0, 1, 1, 2])):
            name = rng.choice(list(call))
            call[name] = spoil(call[name], rng)
        ours, theirs = (outcome(op, copy_call, backend) for backend, copy_call in (
            ("native", {name: copy(value) for name, value in call.items()}),
            ("reference", {name: copy(value) for name, value in call.items()}),
        ))  # fmt: skip
        words.append(ours[0].partition(":")[0])
        if ours[0] == "not native" or "num_arrived" in theirs[0]:  # counters that Triton's kernel alone uses
            continue
        assert ours[0].partition(":")[0] == theirs[0].partition(":")[0], (seed, ours[0], theirs[0])
        if is_finite(call):
            for mine, other in zip(ours[1], theirs[1], strict=True):
                if not mine.is_meta and mine.ndim != 2:  # tables of the state have a scratch column
                    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4, equal_nan=True, msg=f"seed {seed}")
    assert {"done", "refused"} <= set(words)
