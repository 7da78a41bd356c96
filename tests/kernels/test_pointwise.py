"""The pointwise ops of a decoder block in every backend, held to plain PyTorch as one writes it first."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import DTYPES, EPS, INTERPRETED, rms_norm, spread, strided, wide
from native_library import needs_library
from relay_kernels import add_rms_norm, rotate_heads, silu_mul
from torch.nn import functional

SHAPES = [(1, 1), (1, 128), (3, 5, 7), (64, 1, 40), (2, 129), (0, 8), (2, 0, 8), (5, 0), (2, 1031)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def rotate(heads, cosine, sine, weight=None):
    """Pairs (x, y) become (x cos - y sin, y cos + x sin)."""
    heads = heads if weight is None else rms_norm(heads, weight)
    x, y = heads[..., : heads.shape[-1] // 2], heads[..., heads.shape[-1] // 2 :]
    cosine, sine = cosine[:, :, None].chunk(2, -1), sine[:, :, None].chunk(2, -1)
    return torch.cat([x * cosine[0] - y * sine[0], y * cosine[1] + x * sine[1]], -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norm_is_that_of_the_rounded_sum(backend, draw, dtype, shape, assert_as_exact_as):
    hidden, residual, weight = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype), draw(shape[-1], dtype=dtype)
    normed, total = add_rms_norm(hidden, weight, EPS, residual, backend=backend)
    assert torch.equal(total, hidden + residual)
    truth = rms_norm(*wide(total, weight))
    assert_as_exact_as(normed, rms_norm(total, weight), truth, scale=spread(truth))


def test_the_sum_is_the_hidden_states_themselves_without_a_residual(backend, draw, assert_as_exact_as):
    hidden, weight = draw(3, 4, 48), draw(48)
    normed, total = add_rms_norm(hidden, weight, EPS, backend=backend)
    assert total is hidden
    assert_as_exact_as(normed, functional.rms_norm(hidden, (48,), weight, EPS), rms_norm(*wide(hidden, weight)))


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e-4, 1e15, float("inf")])
def test_the_norm_of_extreme_rows_is_that_of_pytorch(backend, draw, scale):
    hidden, weight = draw(4, 70), draw(70)
    hidden[1] *= scale
    hidden[1].nan_to_num_(0.0, float("inf"), float("-inf"))
    normed, _ = add_rms_norm(hidden, weight, EPS, backend=backend)
    expected = functional.rms_norm(hidden, (70,), weight, EPS)
    torch.testing.assert_close(normed, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(4, 2, 32), (1, 1, 2), (3, 1, 10), (7, 7, 80), (16, 8, 128), (5, 5, 96), (2, 0, 8)]
)
def test_halves_of_heads_turn_as_pairs(backend, draw, dtype, has_norm, heads, kv_heads, size, assert_as_exact_as):
    query, key = draw(3, 2, heads, size, dtype=dtype), draw(3, 2, kv_heads, size, dtype=dtype)
    # Any angles, not only of equal halves, so that a value of the wrong half shows.
    cosine, sine = draw(3, 2, size, dtype=dtype), draw(3, 2, size, dtype=dtype)
    norms = (draw(size, dtype=dtype), draw(size, dtype=dtype)) if has_norm else (None, None)
    outputs = rotate_heads(query, key, cosine, sine, *norms, eps=EPS, backend=backend)
    for output, states, norm in zip(outputs, (query, key), norms, strict=True):
        truth = rotate(*wide(states, cosine, sine, norm))
        assert_as_exact_as(output, rotate(states, cosine, sine, norm), truth, scale=spread(truth))


def test_a_turn_keeps_the_length_of_each_head(backend, draw):
    query, key, angle = draw(2, 3, 4, 16), draw(2, 3, 2, 16), draw(2, 3, 8, scale=100.0).repeat(1, 1, 2)
    turned = rotate_heads(query, key, angle.cos(), angle.sin(), backend=backend)
    for before, after in zip((query, key), turned, strict=True):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gate_is_silu_times_up(backend, draw, dtype, shape, assert_as_exact_as):
    gate, up = draw(*shape, dtype=dtype, scale=4.0), draw(*shape, dtype=dtype)
    truth = functional.silu(gate.double()) * up.double()
    assert_as_exact_as(silu_mul(gate, up, backend=backend), functional.silu(gate) * up, truth, scale=spread(truth))


def test_a_gate_of_any_size_gives_what_pytorch_gives(backend, draw):
    values = [0.0, -0.0, 1e-30, -1e-30, 80.0, -80.0, 87.0, -87.0, 1e4, -1e4, 3e38, -3e38, float("inf"), float("nan")]
    gate = torch.tensor(values, device=draw(1).device)
    output = silu_mul(gate, torch.ones_like(gate), backend=backend)
    torch.testing.assert_close(output, functional.silu(gate), equal_nan=True, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("layout", ["rows apart", "rows crossed", "columns apart"])
def test_rows_may_lie_anywhere(backend, draw, layout):
    first, second, weight = draw(3, 4, 24), draw(3, 4, 24), draw(24)
    others = strided(first, layout), strided(second, layout)
    expected = add_rms_norm(first, weight, EPS, second, backend=backend)
    for actual, wanted in zip(add_rms_norm(others[0], weight, EPS, others[1], backend=backend), expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    torch.testing.assert_close(silu_mul(*others, backend=backend), silu_mul(first, second, backend=backend))


@pytest.mark.parametrize("layout", ["rows apart", "rows crossed"])
def test_heads_may_lie_anywhere_and_rows_may_share_angles(backend, draw, layout):
    query, key, cosine, sine = draw(3, 2, 4, 8), draw(3, 2, 2, 8), draw(1, 2, 8), draw(1, 2, 8)
    shared = cosine.expand(3, -1, -1), sine.expand(3, -1, -1)
    expected = rotate_heads(query, key, *(angles.contiguous() for angles in shared), backend=backend)
    actual = rotate_heads(strided(query, layout), strided(key, layout), *shared, backend=backend)
    for output, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(output, wanted)


@pytest.mark.parametrize(("rows", "tokens"), [(0, 2), (2, 0)])
def test_nothing_is_turned_when_there_are_no_rows_or_no_tokens(backend, draw, rows, tokens):
    angles = draw(rows, tokens, 8)
    query, key = rotate_heads(draw(rows, tokens, 4, 8), draw(rows, tokens, 2, 8), angles, angles, backend=backend)
    assert query.shape == (rows, tokens, 4, 8)
    assert key.shape == (rows, tokens, 2, 8)


@needs_library
@pytest.mark.skipif(INTERPRETED, reason="about the native library")
def test_results_have_the_same_bits_on_any_number_of_threads_and_in_any_batch():
    torch.manual_seed(0)
    wide_rows, weight = torch.randn(2, 300, 512), torch.randn(512)  # enough work for several threads
    heads, angles = wide_rows.view(2, 300, 4, 128), wide_rows[..., :128]

    def run(start, stop):
        rows = wide_rows[:, start:stop]
        return (
            *add_rms_norm(rows, weight, EPS, rows),
            *rotate_heads(*[heads[:, start:stop]] * 2, *[angles[:, start:stop]] * 2, weight[:128], weight[128:256]),
            silu_mul(rows, rows),
        )

    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        results.append(run(0, 300))
    torch.set_num_threads(before)
    for first, second, third, alone in zip(*results, run(7, 8), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert torch.equal(first[:, 7:8], alone)


ARGUMENTS = {
    add_rms_norm: {"hidden": (3, 8), "weight": (8,), "residual": (3, 8)},
    rotate_heads: {
        "query": (3, 2, 4, 8), "key": (3, 2, 2, 8), "cosine": (3, 2, 8), "sine": (3, 2, 8),
        "query_norm": (8,), "key_norm": (8,),
    },
    silu_mul: {"gate": (3, 8), "up": (3, 8)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("op", "name", "change"),
    [
        (add_rms_norm, "hidden", lambda x: x[0, 0]),
        (add_rms_norm, "weight", lambda x: x[:7]),
        (add_rms_norm, "weight", lambda x: x[None]),
        (add_rms_norm, "weight", lambda x: x.repeat_interleave(2)[::2]),
        (add_rms_norm, "residual", lambda x: x[:2]),
        (add_rms_norm, "residual", lambda x: x[..., :7]),
        (rotate_heads, "query", lambda x: x[0]),
        (rotate_heads, "query", lambda x: x[..., :7]),
        (rotate_heads, "query", lambda x: x.transpose(0, 3).contiguous().transpose(0, 3)),
        (rotate_heads, "key", lambda x: x[:, :1]),
        (rotate_heads, "key", lambda x: x[..., :4]),
        (rotate_heads, "cosine", lambda x: x[:, :1]),
        (rotate_heads, "sine", lambda x: x[..., :4]),
        (rotate_heads, "query_norm", lambda x: x[:4]),
        (rotate_heads, "key_norm", lambda _: None),
        (silu_mul, "up", lambda x: x[:, :7]),
    ],
)
def test_a_bad_argument_is_named(backend, draw, op, name, change):
    arguments = {argument: draw(*shape) for argument, shape in ARGUMENTS[op].items()}
    arguments[name] = change(arguments[name])
    eps = {} if op is silu_mul else {"eps": EPS}
    with pytest.raises(ValueError, match=name):
        op(**arguments, **eps, backend=backend)


@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -1e-6, -(10**30)])
@pytest.mark.parametrize("op", [add_rms_norm, rotate_heads])
def test_an_epsilon_that_gives_no_number_is_refused(backend, draw, op, eps):
    arguments = {argument: draw(*shape) for argument, shape in ARGUMENTS[op].items()}
    with pytest.raises(ValueError, match=r"^eps must be finite and at least 0"):
        op(**arguments, eps=eps, backend=backend)


def test_integers_are_refused(draw):
    rows = draw(3, 8)
    with pytest.raises(ValueError, match=r"hidden must be a float tensor .* not torch.int64"):
        add_rms_norm(rows.long(), rows[0], EPS)
    with pytest.raises(ValueError, match=r"up must be a float tensor .* not torch.int64"):
        silu_mul(rows, rows.long())


def test_dtypes_that_differ_are_promoted_unless_a_fast_backend_is_asked_for(backend, draw):
    hidden, residual, weight = draw(3, 8), draw(3, 8, dtype=torch.bfloat16), draw(8)
    normed, total = add_rms_norm(hidden, weight, EPS, residual)
    assert torch.equal(total, hidden + residual)
    assert normed.dtype == silu_mul(residual, hidden).dtype == torch.float32
    heads, angles = residual[:, None, None], hidden[:, None]
    assert rotate_heads(heads, heads, angles, angles)[0].dtype == torch.bfloat16
    if backend != "reference":
        with pytest.raises(RuntimeError, match=f"backend='{backend}' of silu_mul cannot run: its tensors have one"):
            silu_mul(residual, hidden, backend=backend)


def test_double_precision_stays_double(draw):
    gate = draw(3, 8).double()
    assert torch.equal(silu_mul(gate, gate), functional.silu(gate) * gate)
    torch.testing.assert_close(add_rms_norm(gate, gate[0], EPS)[0], rms_norm(gate, gate[0]))
