"""Which backend a call takes, and what is said when it cannot."""

from __future__ import annotations

import pytest
import relay_kernels
import torch
from relay_kernels import __main__ as overview
from relay_kernels import (
    add_rms_norm,
    append_kv,
    backends,
    decode_attention,
    linear_log_probs,
    native,
    norm_linear,
    relay_advantages,
    relay_step,
    rotate_heads,
    silu_mul,
)
from relay_kernels.backends import NATIVE_DEVICES, choose_backend, why_not_native
from relay_kernels.decode_attention import flash_impl
from relay_kernels.relay_step import RelayStepState, TokenSource

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_auto_takes_the_reference_on_a_cpu_even_under_the_interpreter(monkeypatch):
    assert choose_backend("op", "auto", CPU) == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("op", "auto", CPU) == "reference"


def test_auto_takes_triton_on_a_gpu_unless_the_op_has_a_reason_against_it():
    pytest.importorskip("triton")
    assert choose_backend("op", "auto", CUDA) == "triton"
    assert choose_backend("op", "auto", CUDA, why_not="odd dtype") == "reference"


def test_auto_takes_the_library_on_a_cpu_where_it_was_built_and_the_op_is_in_it(monkeypatch):
    monkeypatch.setattr(backends, "load_library", lambda: (object(), None))
    assert choose_backend("op", "auto", CPU, no_native=None) == "native"
    assert choose_backend("op", "auto", CPU, no_native="odd dtype") == "reference"
    assert choose_backend("op", "auto", torch.device("meta"), no_native=None) == "reference"
    monkeypatch.setattr(backends, "load_library", lambda: (None, "it was not built"))
    assert choose_backend("op", "auto", CPU, no_native=None) == "reference"
    with pytest.raises(RuntimeError, match="'native' of op cannot run: it was not built"):
        choose_backend("op", "native", CPU, no_native=None)


def test_the_library_runs_on_cuda_tensors_only_when_asked_for_and_built_with_nvcc(monkeypatch):
    monkeypatch.setattr(backends, "load_library", lambda: ({"has_cuda": lambda: True}, None))
    assert choose_backend("op", "native", CUDA, no_native=None) == "native"
    assert choose_backend("op", "auto", CUDA, no_native=None) != "native"
    monkeypatch.setattr(backends, "load_library", lambda: ({"has_cuda": lambda: False}, None))
    with pytest.raises(RuntimeError, match=r"'native' of op cannot run: .* without nvcc"):
        choose_backend("op", "native", CUDA, no_native=None)


def test_a_missing_or_damaged_library_is_a_reason_and_not_a_crash(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "find_library", lambda: None)
    assert "was not built" in native.load_library.__wrapped__()[1]
    damaged = tmp_path / native.LIBRARY
    damaged.write_bytes(b"no library")
    monkeypatch.setattr(native, "find_library", lambda: damaged)
    assert str(damaged) in native.load_library.__wrapped__()[1]


def test_an_explicit_backend_that_cannot_run_raises_its_reason():
    with pytest.raises(RuntimeError, match=r"'triton' of op cannot run: .*cpu"):
        choose_backend("op", "triton", CPU)
    with pytest.raises(RuntimeError, match="odd dtype"):
        choose_backend("op", "triton", CUDA, why_not="odd dtype")
    with pytest.raises(ValueError, match="backend='cuda' of op is unknown"):
        choose_backend("op", "cuda", CPU)


def test_the_overview_names_every_op_with_its_backend_and_the_reason(capsys):
    overview.main()
    lines = capsys.readouterr().out.splitlines()
    for op in overview.OPS:
        [line] = [line for line in lines if line.startswith(f"{op} ") and " cpu " in line]
        assert ("native" if op in NATIVE_DEVICES and why_not_native(CPU) is None else "reference") in line
        assert "not triton: " in line


def empty(*shape, device="cpu", dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device=device)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("residual", lambda: add_rms_norm(empty(2, 8), empty(8), 1e-6, empty(2, 8).half(), backend="native")),
        ("sine", lambda: rotate_heads(*[empty(1, 1, 2, 8)] * 2, *ANGLES, backend="native")),
        ("gate", lambda: silu_mul(*[empty(2, 8).half()] * 2, backend="native")),
        ("key_cache", lambda: append_kv(*[empty(1, 4, 2, 8).half()] * 4, empty(1, **ROWS), backend="native")),
        ("query", lambda: decode_attention(*[empty(1, 1, 2, 8).half()] * 3, empty(1, **ROWS), backend="native")),
    ],
)
def test_a_backend_that_lacks_a_dtype_says_whose_it_is(name, call):
    with pytest.raises(RuntimeError, match=rf"^backend='native' of \w+ cannot run: .*torch.float16 \({name}\)$"):
        call()


META = {"device": "meta"}
ROWS = {"dtype": torch.int64}
ANGLES = (empty(1, 1, 8), empty(1, 1, 8).half())
CALLS = {
    "add_rms_norm": lambda **options: add_rms_norm(empty(2, 8), empty(8), 1e-6, **options),
    "append_kv": lambda **options: append_kv(
        *[empty(1, 4, 2, 8)] * 2, *[empty(1, 1, 2, 8)] * 2, empty(1, **ROWS), **options
    ),
    "decode_attention": lambda **options: decode_attention(
        empty(1, 1, 2, 8), *[empty(1, 4, 2, 8)] * 2, empty(1, **ROWS) + 1, **options
    ),
    "linear_log_probs": lambda **options: linear_log_probs(empty(2, 8), empty(9, 8), empty(2, **ROWS), **options),
    "norm_linear": lambda **options: norm_linear(empty(2, 16), empty(16), 1e-6, [empty(3, 16)], **options),
    "relay_advantages": lambda **options: relay_advantages(*[empty(2, **ROWS)] * 4, 2, **options),
    "relay_step": lambda **options: step(eos_token_ids=empty(1, **ROWS), **options),
    "rotate_heads": lambda **options: rotate_heads(*[empty(1, 1, 2, 8)] * 2, *[empty(1, 1, 8)] * 2, **options),
    "silu_mul": lambda **options: silu_mul(empty(2, 8), empty(2, 8), **options),
}
"""A small call of each op."""


def test_every_op_is_called_here():
    assert sorted(CALLS) == sorted(relay_kernels.__all__) == sorted(overview.OPS)


@pytest.mark.parametrize("backend", ["native", "triton", "flash"])
@pytest.mark.parametrize("op", CALLS)
def test_an_op_asked_of_a_backend_that_is_not_built_says_so_and_runs_by_definition_unasked(monkeypatch, op, backend):
    monkeypatch.setattr(backends, "load_library", lambda: (None, "the library was not built"))
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    monkeypatch.setattr(flash_impl, "has_flash_attention", lambda: False)
    with pytest.raises(RuntimeError, match=rf"^backend='{backend}' of {op} cannot run: .*\b(not|no)\b"):
        CALLS[op](backend=backend)
    CALLS[op]()


@pytest.mark.parametrize("op", CALLS)
def test_a_backend_that_nobody_knows_is_refused_with_the_ones_there_are(op):
    with pytest.raises(ValueError, match=f"backend='abacus' of {op} is unknown; it is one of auto, reference, native"):
        CALLS[op](backend="abacus")


def step(**options):
    return relay_step(empty(2, 8), RelayStepState.empty(2, 4), writer=TokenSource.STUDENT, **options)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("weight", lambda: add_rms_norm(empty(2, 8), empty(8, **META), 1e-6)),
        ("weights", lambda: norm_linear(empty(2, 8), empty(8), 1e-6, [empty(3, 8, **META)])),
        ("up", lambda: silu_mul(empty(2, 8), empty(2, 8, **META))),
        ("sine", lambda: rotate_heads(*[empty(1, 1, 2, 8)] * 2, empty(1, 1, 8), empty(1, 1, 8, **META))),
        ("new_key", lambda: append_kv(*[empty(1, 4, 2, 8)] * 2, *[empty(1, 1, 2, 8, **META)] * 2, empty(1, **ROWS))),
        ("query", lambda: decode_attention(empty(1, 1, 2, 8), *[empty(1, 4, 2, 8, **META)] * 2, empty(1, **ROWS))),
        (
            "block_table",
            lambda: decode_attention(
                *[empty(1, 1, 2, 8)] * 3, empty(1, **ROWS), block_table=empty(1, 1, **META, **ROWS)
            ),
        ),
        ("eos_token_ids", lambda: step(eos_token_ids=empty(1, **META, **ROWS))),
        ("rows", lambda: step(eos_token_ids=empty(1, **ROWS), rows=empty(2, **META, **ROWS))),
        ("num_calls", lambda: relay_advantages(*[empty(2, **ROWS)] * 3, empty(2, **META, **ROWS), 2)),
        ("targets", lambda: linear_log_probs(empty(2, 8), empty(9, 8), empty(2, **META, **ROWS))),
    ],
)
def test_a_tensor_without_memory_among_others_is_named_with_its_device(name, call):
    with pytest.raises(ValueError, match=rf"{name}\b.*\bmeta"):
        call()
