"""The launches that ahead_of_time.py compiles: for each op, a name and a call at a shape of production."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

Case = Callable[[], object]


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def decode_attention_cases(op: ModuleType) -> dict[str, Case]:
    def call(
        *, rows=64, tokens=1, heads=16, kv_heads=8, size=128, capacity=4096, dtype=torch.bfloat16, is_appending=True
    ):
        new = meta(rows, tokens, kv_heads, size, dtype=dtype) if is_appending else None
        cache = meta(rows, kv_heads, capacity, size, dtype=dtype).transpose(1, 2)
        lengths = meta(rows, dtype=torch.int32)
        return lambda: op.decode_attention_triton(
            meta(rows, tokens, heads, size, dtype=dtype), cache, cache, lengths, new, new, lengths, lengths, size**-0.5
        )

    def append():
        cache, new, lengths = meta(64, 4096, 8, 128), meta(64, 128, 8, 128), meta(64, dtype=torch.int32)
        op.append_kv_triton(cache, cache, new, new, lengths, lengths, lengths)

    cases = {"one token, D 128, bf16": call(), "chunk of 128, D 128, bf16": call(tokens=128), "append 128": append}
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


CASES: dict[str, Callable[[ModuleType], dict[str, Case]]] = {"decode_attention": decode_attention_cases}
