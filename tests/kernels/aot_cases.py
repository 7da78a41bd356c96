"""The launches that ahead_of_time.py compiles: for each op, a name and a call at a shape of production."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from relay_kernels.relay_step import CommandTable, RelayStepInputs, RelayStepState, TokenSource
from torch import Tensor

Case = Callable[[], object]


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


PAGED = {
    "one token, D 128, bf16": {},
    "one token, D 64, bf16": {"size": 64},
    "one token, D 256, bf16": {"size": 256},
    "one token, D 128, fp32": {"dtype": torch.float32},
    "chunk of 128, D 128, bf16": {"tokens": 128},
    "chunk of 128 in the cache": {"tokens": 128, "is_appending": False},
}


def decode_attention_cases(op: ModuleType) -> dict[str, Case]:
    def call(
        *,
        rows=64,
        tokens=1,
        heads=16,
        kv_heads=8,
        size=128,
        capacity=4096,
        dtype=torch.bfloat16,
        is_appending=True,
        block_size=None,
    ):
        new = meta(rows, tokens, kv_heads, size, dtype=dtype) if is_appending else None
        block_size = block_size or capacity
        cache = meta(rows * capacity // block_size, kv_heads, block_size, size, dtype=dtype).transpose(1, 2)
        lengths, table = meta(rows, dtype=torch.int32), meta(rows, capacity // block_size, dtype=torch.int32)
        return lambda: op.decode_attention_triton(
            meta(rows, tokens, heads, size, dtype=dtype), cache, cache, lengths, new, new, lengths, table, size**-0.5
        )

    def append(num_blocks, block_size):
        cache, new, lengths = (
            meta(64 * num_blocks, block_size, 8, 128),
            meta(64, 128, 8, 128),
            meta(64, dtype=torch.int32),
        )
        table = meta(64, num_blocks, dtype=torch.int32)
        return lambda: op.append_kv_triton(cache, cache, new, new, lengths, lengths, table)

    cases = {"one token, D 128, bf16": call(), "chunk of 128, D 128, bf16": call(tokens=128)}
    cases |= {"append 128": append(1, 4096), "append 128, blocks of 16": append(256, 16)}
    for block_size in (16,):
        paged = {
            f"{name}, blocks of {block_size}": call(block_size=block_size, **shape) for name, shape in PAGED.items()
        }
        cases |= paged
    cases |= {f"one token, D {size}, bf16": call(size=size) for size in (64, 80, 96, 256)}
    cases |= {f"chunk of 128, D {size}, bf16": call(size=size, tokens=128) for size in (64, 80, 96, 256)}
    cases |= {f"one token, D {size}, fp32": call(size=size, dtype=torch.float32) for size in (64, 128, 256)}
    cases |= {f"chunk of 32, D {size}, fp32": call(size=size, tokens=32, dtype=torch.float32) for size in (128, 256)}
    return cases | {
        "one token, group 8, fp16": call(heads=64, dtype=torch.float16),
        "one token in the cache": call(is_appending=False),
        "chunk of 128 in the cache": call(is_appending=False, tokens=128),
        "short cache": call(capacity=300),
    }


def linear_log_probs_cases(op: ModuleType) -> dict[str, Case]:
    def forward(dim=2048, dtype=torch.bfloat16, bias=None):
        return lambda: op._forward(
            meta(8192, dim, dtype=dtype), meta(151_936, dim, dtype=dtype), meta(8192, dtype=torch.int64), bias, 1.0
        )

    def backward(dim=2048, dtype=torch.bfloat16, vocab_size=4096, has_entropy=True):
        numbers = meta(8192, dtype=torch.float32)
        chunks = lambda: op._gradient_chunks(  # noqa: E731
            meta(8192, dim, dtype=dtype),
            meta(vocab_size, dim, dtype=dtype),
            meta(8192, dtype=torch.int64),
            None,
            [numbers] * 3,
            [numbers, numbers if has_entropy else None],
            0.7,
        )
        return lambda: list(chunks())

    return {
        "forward, D 2048, bf16": forward(),
        "gradient, D 2048, bf16": backward(),
        "gradient of log-probs only": backward(has_entropy=False),
        "forward, D 1000, bf16, bias": forward(dim=1000, bias=meta(151_936)),
        "forward, fp32": forward(dtype=torch.float32),
        "gradient, fp32": backward(dtype=torch.float32),
        "forward, fp16": forward(dtype=torch.float16),
    }


def relay_advantages_cases(op: ModuleType) -> dict[str, Case]:
    def call(num_samples=1024, group_size=8, reward="difficulty_aware", scale="group", estimator="grpo"):
        counts = meta(num_samples, dtype=torch.int64)
        is_correct = meta(num_samples, dtype=torch.bool)
        return lambda: op.relay_advantages_triton(
            is_correct, counts, counts, counts, group_size, reward, scale, estimator, 1.5, True
        )

    return {
        "difficulty-aware, group": call(),
        "difficulty-aware, batch": call(scale="batch"),
        "simple, none, G 5": call(group_size=5, reward="simple", scale="none", num_samples=1000),
        "rloo, G 64": call(group_size=64, estimator="rloo"),
    }


def relay_step_cases(op: ModuleType) -> dict[str, Case]:
    student, teacher = TokenSource.STUDENT, TokenSource.TEACHER

    def call(*, dtype=torch.bfloat16, vocab_size=151_936, writer=student, truncates=False, has_rows=False):
        state = RelayStepState.empty(64, 8192, device="meta")
        table = CommandTable(
            next_state=meta(40, vocab_size, dtype=torch.uint8),
            is_complete=meta(40, vocab_size, dtype=torch.bool),
            is_opening=meta(40, vocab_size, dtype=torch.bool),
            digit_action=meta(40, vocab_size, dtype=torch.int16),
            digit_scale=meta(1112, dtype=torch.int64),
            digit_value=meta(1112, dtype=torch.int64),
        )
        logits, ends = meta(64, vocab_size, dtype=dtype), meta(2, dtype=torch.int64)
        rows = meta(64, dtype=torch.int64) if has_rows else None
        return lambda: op.relay_step_triton(RelayStepInputs(logits, state, writer, ends, rows, table, truncates))

    return {
        "student, temperature, bf16": call(),
        "student, truncated, bf16": call(truncates=True),
        "student, truncated, some rows": call(truncates=True, has_rows=True),
        "student, truncated, fp32": call(truncates=True, dtype=torch.float32),
        "student, odd vocabulary, fp16": call(vocab_size=32_003, dtype=torch.float16, truncates=True),
        "student, V 262,144": call(vocab_size=262_144, truncates=True),
        "teacher, temperature, bf16": call(writer=teacher),
        "teacher, truncated, bf16": call(writer=teacher, truncates=True),
    }


def add_rms_norm_cases(op: ModuleType) -> dict[str, Case]:
    def call(*, size=2048, dtype=torch.bfloat16, has_residual=True):
        hidden = meta(64, 1, size, dtype=dtype)
        weight = meta(size, dtype=dtype)
        return lambda: op.add_rms_norm_triton(hidden, weight, 1e-6, hidden if has_residual else None)

    return {
        "D 2048, bf16": call(),
        "D 16384, fp32": call(size=16384, dtype=torch.float32),
        "D 1000, fp16": call(size=1000, dtype=torch.float16),
        "D 128, fp32, no residual": call(size=128, dtype=torch.float32, has_residual=False),
    }


def norm_linear_cases(op: ModuleType) -> dict[str, Case]:
    def call(size, counts, *, rows=1, dtype=torch.bfloat16, is_gated=False, has_residual=True, has_bias=False):
        hidden, norm = meta(rows, size, dtype=dtype), meta(size, dtype=dtype)
        weights = [meta(count, size, dtype=dtype) for count in counts]
        biases = [meta(count, dtype=dtype) if has_bias else None for count in counts]
        residual = hidden if has_residual else None
        return lambda: op.norm_linear_triton(hidden, norm, 1e-6, weights, biases, residual, is_gated)

    cases = {}
    for model, (size, query, inner) in {
        "0.6B": (1024, 2048, 3072), "1.7B": (2048, 2048, 6144), "8B": (4096, 4096, 12288),
    }.items():  # fmt: skip
        cases[f"{model} query, key, value, bf16"] = call(size, (query, 1024, 1024))
        cases[f"{model} gate, up, bf16"] = call(size, (inner, inner), is_gated=True)
    for name, dtype in {"fp16": torch.float16, "fp32": torch.float32}.items():
        cases[f"0.6B query, key, value, {name}"] = call(1024, (2048, 1024, 1024), dtype=dtype)
        cases[f"0.6B gate, up, {name}"] = call(1024, (3072, 3072), is_gated=True, dtype=dtype)
    return cases | {
        "first layer, no residual": call(1024, (2048, 1024, 1024), rows=16, has_residual=False),
        "biases, bf16": call(2048, (2048, 256, 256), has_bias=True),
        "one weight, bf16": call(1024, (77,)),
        "D 1008, two weights, fp16": call(1008, (77, 300), dtype=torch.float16),
        "a weight of one row, bf16": call(1024, (31, 1, 33)),
        "D 16, one output, fp32": call(16, (1,), dtype=torch.float32),
    }


def rotate_heads_cases(op: ModuleType) -> dict[str, Case]:
    def call(*, heads=16, kv_heads=8, size=128, dtype=torch.bfloat16, has_norm=True):
        angles = meta(64, 1, size, dtype=dtype)
        norm = meta(size, dtype=dtype) if has_norm else None
        query, key = meta(64, 1, heads, size, dtype=dtype), meta(64, 1, kv_heads, size, dtype=dtype)
        return lambda: op.rotate_heads_triton(query, key, angles, angles, norm, norm, 1e-6)

    return {
        "D 128, bf16": call(),
        "D 80, 7 heads, bf16, no norm": call(heads=7, kv_heads=7, size=80, has_norm=False),
        "D 256, 64 heads, fp32": call(heads=64, size=256, dtype=torch.float32),
        "D 32, fp16": call(heads=4, kv_heads=2, size=32, dtype=torch.float16),
    }


def silu_mul_cases(op: ModuleType) -> dict[str, Case]:
    def call(size=6144, dtype=torch.bfloat16):
        return lambda: op.silu_mul_triton(meta(64, 1, size, dtype=dtype), meta(64, 1, size, dtype=dtype))

    return {
        "D 6144, bf16": call(),
        "D 256, fp32": call(size=256, dtype=torch.float32),
        "D 1001, fp16": call(size=1001, dtype=torch.float16),
    }


CASES: dict[str, Callable[[ModuleType], dict[str, Case]]] = {
    "add_rms_norm": add_rms_norm_cases,
    "decode_attention": decode_attention_cases,
    "linear_log_probs": linear_log_probs_cases,
    "norm_linear": norm_linear_cases,
    "relay_advantages": relay_advantages_cases,
    "relay_step": relay_step_cases,
    "rotate_heads": rotate_heads_cases,
    "silu_mul": silu_mul_cases,
}
