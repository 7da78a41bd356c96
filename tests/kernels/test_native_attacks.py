"""Targeted attacks on the native library: each ends in a ValueError that names the argument, or in the right result.

All run in a process of their own, between guard bands. The table of an op grows by a line of `ATTACKS`; those of
`relay_step` are in test_relay_step_arguments.py. Shapes: B rows, T new tokens, N blocks of P tokens, M blocks of a row.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import sanitized_library  # noqa: F401 - the process of the attacks runs the library that its tests run
import torch
from guarded_call import Call, outcome, outcomes_elsewhere
from native_library import needs_library
from relay_kernels import add_rms_norm, append_kv, decode_attention, rotate_heads, silu_mul
from relay_kernels.backends import NATIVE_DEVICES
from torch import Tensor

pytestmark = needs_library

B, T, K, H, D, N, P, M = 3, 2, 2, 4, 32, 10, 16, 3
ELSEWHERE = {"relay_step"}
PAIR = torch.arange(N * 2 * P * K * D).view(N, 2, P, K, D).sin()
"""Keys and values of each block side by side."""
NAN, INFINITY = float("nan"), float("inf")
Change = dict[str, Callable[[Any], Any]]


def append_call() -> Call:
    """Rows of 0, 20 and 31 tokens in blocks of their own; the last gets one new token."""
    return {
        "key_cache": torch.randn(N, P, K, D), "value_cache": torch.randn(N, P, K, D),
        "new_key": torch.randn(B, T, K, D), "new_value": torch.randn(B, T, K, D),
        "cache_seqlens": torch.tensor([0, 20, 31]), "num_new": torch.tensor([2, 2, 1]),
        "block_table": torch.tensor([[7, 0, 0], [2, 5, 0], [1, 9, 0]]),
    }  # fmt: skip


def attention_call() -> Call:
    return append_call() | {"query": torch.randn(B, T, H, D), "scale": 0.2}


def norm_call() -> Call:
    return {"hidden": torch.randn(5, 3, D), "weight": torch.randn(D), "eps": 1e-6, "residual": torch.randn(5, 3, D)}


def rotate_call() -> Call:
    call = {"query": torch.randn(B, T, H, D), "key": torch.randn(B, T, K, D), "eps": 1e-6}
    call |= {name: torch.randn(B, T, D) for name in ("cosine", "sine")}
    return call | {name: torch.randn(D) for name in ("query_norm", "key_norm")}


def silu_call() -> Call:
    return {"gate": torch.randn(5, 3, D), "up": torch.randn(5, 3, D)}


def at(*place: int, value: float) -> Callable[[Tensor], Tensor]:
    """Puts one value into a tensor."""

    def put(tensor: Tensor) -> Tensor:
        tensor[place] = value
        return tensor

    return put


def to(value: Any) -> Callable[[Any], Any]:
    """Something else altogether."""
    return lambda _: value


def every_second(tensor: Tensor) -> Tensor:
    """The same values, each followed by a hole."""
    return tensor.repeat_interleave(2, -1)[..., ::2]


def turned(tensor: Tensor) -> Tensor:
    """The same values in column order."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def windows(tensor: Tensor) -> Tensor:
    """The same shape, each place of the second dimension beginning one element behind the one before."""
    return tensor.as_strided(tensor.shape, (tensor.stride(0), 1, *tensor.stride()[2:]))


@dataclass(frozen=True)
class Attack:
    changes: Change
    """By argument."""
    refused: str | None = None
    """Argument that the ValueError names; None: the result is right."""
    same_as: Change = field(default_factory=dict)
    """Changes of the harmless call that gives the result, where the definition cannot run the attack itself."""


CACHE = {
    "a block far away": Attack({"block_table": at(0, 0, value=2**62)}, "block_table"),
    "a block of id -1": Attack({"block_table": at(2, 1, value=-1)}, "block_table"),
    "one block too far": Attack({"block_table": at(1, 0, value=N)}, "block_table"),
    "a block of the least int32": Attack({"block_table": lambda x: at(0, 0, value=-(2**31))(x.int())}, "block_table"),
    "wild blocks behind the tokens": Attack({"block_table": lambda x: x + torch.tensor([0, 0, 2**62])}),
    "a block of two rows that write": Attack({"block_table": at(0, 0, value=9)}, "block_table"),
    "a block twice in one row": Attack(
        {"block_table": at(0, value=7), "cache_seqlens": at(0, value=15)}, "block_table"
    ),
    "a block of two rows that nobody writes": Attack({"block_table": at(1, 0, value=1)}),
    "a length of 2^62": Attack({"cache_seqlens": at(0, value=2**62)}, "cache_seqlens"),
    "a length of 2^40": Attack({"cache_seqlens": at(1, value=2**40)}, "cache_seqlens"),
    "a length that overflows with the new tokens": Attack({"cache_seqlens": at(0, value=2**63 - 1)}, "cache_seqlens"),
    "an int32 length that overflows": Attack(
        {"cache_seqlens": lambda x: at(0, value=2**31 - 1)(x.int())}, "cache_seqlens"
    ),
    "a length of -1": Attack({"cache_seqlens": at(2, value=-1)}, "cache_seqlens"),
    "no room for the last new token": Attack({"cache_seqlens": at(0, value=M * P - 1)}, "cache_seqlens"),
    "an idle row with wild values": Attack(
        {"num_new": at(1, value=0), "cache_seqlens": at(1, value=2**62), "block_table": at(1, value=2**62)}
    ),
    "an idle row of negative length": Attack(
        {"num_new": at(1, value=0), "cache_seqlens": at(1, value=-(2**62))}, "cache_seqlens"
    ),
    "nothing but idle rows of 2^61 tokens": Attack(
        {"num_new": torch.zeros_like, "cache_seqlens": lambda x: x + 2**61, "block_table": lambda x: x - 2**61}
    ),
    "-1 new tokens": Attack({"num_new": at(0, value=-1)}, "num_new"),
    "2^62 new tokens": Attack({"num_new": at(0, value=2**62)}, "num_new"),
    "one new token too many": Attack({"num_new": at(0, value=T + 1)}, "num_new"),
    "a table without columns": Attack({"block_table": lambda x: x[:, :0]}, "block_table"),
    "a table that lacks a row": Attack({"block_table": lambda x: x[:2]}, "block_table"),
    "a table of floats": Attack({"block_table": Tensor.float}, "block_table"),
    "a table in column order": Attack({"block_table": turned}),
    "lengths with holes": Attack({"cache_seqlens": every_second, "num_new": every_second}),
    "one length for all rows": Attack({"cache_seqlens": lambda x: x[1:2].expand(B)}),
    "lengths elsewhere": Attack({"cache_seqlens": lambda x: x.to("meta")}, "cache_seqlens"),
    "no blocks": Attack({"key_cache": lambda x: x[:0], "value_cache": lambda x: x[:0]}, "block_table"),
    "blocks of no token": Attack({"key_cache": lambda x: x[:, :0], "value_cache": lambda x: x[:, :0]}, "cache_seqlens"),
    "no heads": Attack(
        {name: lambda x: x[:, :, :0] for name in ("key_cache", "value_cache", "new_key", "new_value")}, "key_cache"
    ),
    "no rows": Attack(
        {name: lambda x: x[:0] for name in ("new_key", "new_value", "cache_seqlens", "num_new", "block_table", "query")}
    ),
    "no new tokens": Attack(
        {name: lambda x: x[:, :0] for name in ("new_key", "new_value", "query")} | {"num_new": torch.zeros_like}
    ),
    "heads of no value": Attack(
        {name: lambda x: x[..., :0] for name in ("key_cache", "value_cache", "new_key", "new_value", "query")}
    ),
    "blocks of an odd size": Attack({name: lambda x: x[:, :15] for name in ("key_cache", "value_cache")}, "key_cache"),
    "one block for all": Attack({"key_cache": lambda x: x[:1].expand(x.shape)}, "key_cache"),
    "one place for all tokens": Attack({"value_cache": lambda x: x[:, :1].expand(x.shape)}, "value_cache"),
    "places that overlap": Attack({"key_cache": windows}, "key_cache"),
    "blocks that overlap": Attack(
        {"value_cache": lambda x: x.as_strided(x.shape, (x.stride(1), *x.stride()[1:]))}, "value_cache"
    ),
    "a cache with holes": Attack({"key_cache": every_second}, "key_cache"),
    "a cache in column order": Attack({"value_cache": turned}, "value_cache"),
    "a cache of heads first": Attack({"key_cache": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)}),
    "new tokens that lie in the cache": Attack(
        {"key_cache": to(PAIR[:, 0]), "new_key": to(PAIR[7:, 0, :T]), "num_new": lambda x: x * torch.tensor([1, 0, 0])}
    ),
    "caches side by side": Attack({"key_cache": to(PAIR[:, 0]), "value_cache": to(PAIR[:, 1])}),
    "one cache for keys and values": Attack({"key_cache": to(PAIR[:, 0]), "value_cache": to(PAIR[:, 0])}),
    "a value cache of fewer blocks": Attack({"value_cache": lambda x: x[:5]}, "value_cache"),
    "a value cache of another dtype": Attack({"value_cache": Tensor.bfloat16}, "value_cache"),
    "a value cache elsewhere": Attack({"value_cache": lambda x: x.to("meta")}, "value_cache"),
    "new values of fewer heads": Attack({"new_value": lambda x: x[:, :, :1]}, "new_value"),
    "one new token for all": Attack({"new_key": lambda x: x[:1, :1].expand(x.shape)}),
}  # fmt: skip
APPEND = {
    "2^55 new tokens that do not fit": Attack(
        {name: lambda x: x[:, :1].expand(B, 2**55, K, D) for name in ("new_key", "new_value")} | {"num_new": to(None)},
        "cache_seqlens",
    ),
}
ATTENTION = {
    "new keys without values": Attack({"new_value": to(None)}, "new_value"),
    "a capacity that overflows": Attack(
        {name: lambda x: x[:B, :1].expand(B, 2**55, K, D) for name in ("key_cache", "value_cache")}
        | {"new_key": to(None), "new_value": to(None), "block_table": to(torch.arange(B)[:, None].expand(B, 512))},
        same_as={name: lambda x: x[:B, :1].expand(B, 64, K, D) for name in ("key_cache", "value_cache")}
        | {"new_key": to(None), "new_value": to(None), "block_table": to(torch.arange(B)[:, None])},
    ),
    "a scale of NaN": Attack({"scale": to(NAN)}, "scale"),
    "an infinite scale": Attack({"scale": to(-INFINITY)}, "scale"),
    "a scale beyond fp32": Attack({"scale": to(1e300)}),
    "a query of heads that do not divide": Attack({"query": lambda x: x[:, :, :3]}, "query"),
    "a query of no heads": Attack({"query": lambda x: x[:, :, :0]}),
    "a query of longer heads": Attack({"query": lambda x: torch.cat([x, x], -1)}, "query"),
    "a query with holes": Attack({"query": every_second}, "query"),
    "a query elsewhere": Attack({"query": lambda x: x.to("meta")}, "query"),
    "one query for all": Attack({"query": lambda x: x[:1, :1, :1].expand(x.shape)}),
    "an infinite key": Attack({"new_key": at(0, 1, 0, 3, value=INFINITY)}),
    "NaN behind the tokens": Attack({"key_cache": at(9, -1, value=NAN), "value_cache": at(5, 6, value=NAN)}),
}
NORM = {
    "a short weight": Attack({"weight": lambda x: x[:-1]}, "weight"),
    "a weight with holes": Attack({"weight": every_second}, "weight"),
    "a weight elsewhere": Attack({"weight": lambda x: x.to("meta")}, "weight"),
    "one number as a weight": Attack({"weight": lambda x: x[0]}, "weight"),
    "an epsilon of NaN": Attack({"eps": to(NAN)}, "eps"),
    "a negative epsilon": Attack({"eps": to(-1e-6)}, "eps"),
    "an epsilon beyond fp32": Attack({"eps": to(1e300)}),
    "a residual of fewer rows": Attack({"residual": lambda x: x[:4]}, "residual"),
    "a residual of one row": Attack({"residual": lambda x: x[:1].expand(x.shape)}),
    "a residual elsewhere": Attack({"residual": lambda x: x.to("meta")}, "residual"),
    "integers": Attack({"hidden": Tensor.int}, "hidden"),
    "one number": Attack({"hidden": lambda x: x[0, 0, 0]}, "hidden"),
    "rows in column order": Attack({"hidden": turned}),
    "rows with holes": Attack({"hidden": every_second, "residual": every_second}),
    "rows that overlap": Attack({"hidden": windows}),
    "one value for all": Attack({"hidden": lambda x: x[:1, :1, :1].expand(x.shape)}),
    "no rows": Attack({"hidden": lambda x: x[:0], "residual": lambda x: x[:0]}),
    "rows of no value": Attack({name: lambda x: x[..., :0] for name in ("hidden", "residual", "weight")}),
    "NaN and infinity": Attack({"hidden": at(0, 0, 0, value=NAN), "residual": at(1, 1, 1, value=INFINITY)}),
}
ROTATE = {
    "an odd head size": Attack({"query": lambda x: x[..., :-1]}, "query"),
    "angles of fewer tokens": Attack({"cosine": lambda x: x[:, :1]}, "cosine"),
    "angles of fewer rows": Attack({"sine": lambda x: x[:1]}, "sine"),
    "angles of one row": Attack({"sine": lambda x: x[:1].expand(x.shape), "cosine": lambda x: x[:1].expand(x.shape)}),
    "angles with holes": Attack({"sine": every_second}, "sine"),
    "angles elsewhere": Attack({"cosine": lambda x: x.to("meta")}, "cosine"),
    "one norm of two": Attack({"key_norm": to(None)}, "key_norm"),
    "a long norm": Attack({"query_norm": lambda x: torch.cat([x, x])}, "query_norm"),
    "an infinite epsilon": Attack({"eps": to(INFINITY)}, "eps"),
    "a key of fewer rows": Attack({"key": lambda x: x[:2]}, "key"),
    "no heads": Attack({"query": lambda x: x[:, :, :0], "key": lambda x: x[:, :, :0]}),
    "no tokens": Attack({name: lambda x: x[:, :0] for name in ("query", "key", "cosine", "sine")}),
    "heads of no value": Attack({name: lambda x: x[..., :0] for name in rotate_call() if name != "eps"}),
    "heads that overlap": Attack({"query": windows}),
    "a query with holes": Attack({"query": every_second}, "query"),
    "a key of another dtype": Attack({"key": Tensor.double}),
}
SILU = {
    "another shape": Attack({"up": lambda x: x[:, :2]}, "up"),
    "as many values in another shape": Attack({"up": lambda x: x.transpose(0, 1)}, "up"),
    "elsewhere": Attack({"up": lambda x: x.to("meta")}, "up"),
    "integers": Attack({"gate": Tensor.long}, "gate"),
    "one number": Attack({"gate": lambda x: x[0, 0, 0], "up": lambda x: x[0, 0, 0]}, "gate"),
    "one value for all": Attack({"up": lambda x: x[:1, :1, :1].expand(x.shape)}),
    "column order": Attack({"gate": turned}),
    "with holes": Attack({"gate": every_second}),
    "rows that overlap": Attack({"up": windows}),
    "2^60 rows of no value": Attack({"gate": to(torch.empty(2**60, 0)), "up": to(torch.empty(2**60, 0))}),
    "no rows": Attack({"gate": lambda x: x[:0], "up": lambda x: x[:0]}),
    "NaN and infinity": Attack({"gate": at(0, 0, 0, value=-INFINITY), "up": at(1, 1, 1, value=NAN)}),
}
OPS: dict[Callable[..., Any], tuple[Callable[[], Call], dict[str, Attack]]] = {
    append_kv: (append_call, CACHE | APPEND),
    decode_attention: (attention_call, CACHE | ATTENTION),
    add_rms_norm: (norm_call, NORM),
    rotate_heads: (rotate_call, ROTATE),
    silu_mul: (silu_call, SILU),
}
"""Op -> a good call of it, and the attacks on it."""
ATTACKS = {f"{op.__name__}: {name}": (op, name) for op, (_, attacks) in OPS.items() for name in attacks}


def changed(call: Call, changes: Change) -> Call:
    """The call with changed arguments; those that it does not have are left out."""
    return call | {name: by(call[name].clone() if isinstance(call[name], Tensor) else call[name])
                   for name, by in changes.items() if name in call}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    return outcomes_elsewhere(__file__, [*ATTACKS])


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_by_name_or_does_no_harm(outcomes: dict[str, str], name: str):
    op, attack = ATTACKS[name]
    refused = OPS[op][1][attack].refused
    expected = "right" if refused is None else rf"refused: (?s:.*)\b{refused}\b"
    assert re.match(expected, outcomes[name]), outcomes[name]


def test_a_write_beside_a_tensor_is_seen():
    """The premise of the tests above."""

    def write(tensor: Tensor, place: int, backend: str = "native") -> None:
        if backend == "native" or place < tensor.numel():
            tensor.as_strided((1,), (1,), tensor.storage_offset() + place).zero_()

    within, beside = ({"tensor": torch.ones(3), "place": place} for place in (2, 3))
    assert outcome(write, within, within) == "right"
    assert outcome(write, beside, beside) == "wrote beside a tensor"


def test_every_native_op_is_attacked():
    assert {op.__name__ for op in OPS} | ELSEWHERE == set(NATIVE_DEVICES)
    assert len(ATTACKS) >= 20


def main() -> None:
    """Makes the attacks that standard input names."""
    for name in json.load(sys.stdin):
        op, attack_name = ATTACKS[name]
        make, attacks = OPS[op]
        torch.manual_seed(0)
        good = make()
        attack = attacks[attack_name]
        call = changed(good, attack.changes)
        same_as = changed(good, attack.same_as) if attack.same_as else call
        print(json.dumps([name, outcome(op, call, same_as)]), flush=True)


if __name__ == "__main__":
    main()
