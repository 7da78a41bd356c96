"""The norm and the linear layers behind it in every backend, held to plain PyTorch as one writes it first."""

from __future__ import annotations

import pytest
import torch
from kernel_backends import DTYPES, EPS, EXACTLY, TRITON, rms_norm, spread, strided, wide
from relay_kernels import add_rms_norm, norm_linear, silu_mul
from relay_kernels.norm_linear import MAX_ROWS
from torch.nn import functional

SHAPES = [
    ((1,), 16, (1,), False),
    ((1,), 128, (32,), False),
    ((16,), 256, (64, 32, 32), False),
    ((3, 1), 48, (5, 70), False),
    ((2, 7), 144, (31, 1, 33), False),
    ((5,), 1040, (16, 50), False),
    ((1, 1), 512, (48, 48), True),
    ((16,), 304, (17, 17), True),
    ((0,), 16, (3, 4), False),
    ((2, 0), 16, (5, 5), True),
]  # rows, D, outputs of each weight, whether they are gate and up
PARTS = [(False, False), (True, False), (False, True), (True, True)]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.fixture
def draw_layers(draw):
    """A norm, weights and biases; the weights keep the size of what they multiply."""

    def draw_all(size, counts, dtype=torch.float32):
        weights = [draw(count, size, dtype=dtype, scale=size**-0.5) for count in counts]
        return draw(size, dtype=dtype), weights, [draw(count, dtype=dtype) for count in counts]

    return draw_all


def plain(total, norm, weights, biases, is_gated):
    normed = rms_norm(total, norm)
    outputs = [functional.linear(normed, *layer) for layer in zip(weights, biases, strict=True)]
    return [functional.silu(outputs[0]) * outputs[1]] if is_gated else outputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("has_residual", "has_bias"), PARTS)
@pytest.mark.parametrize(("rows", "size", "counts", "is_gated"), SHAPES)
def test_outputs_are_the_layers_of_the_normed_sum(
    backend, draw, draw_layers, dtype, has_residual, has_bias, rows, size, counts, is_gated, assert_as_exact_as
):
    hidden, residual = draw(*rows, size, dtype=dtype), draw(*rows, size, dtype=dtype) if has_residual else None
    norm, weights, biases = draw_layers(size, counts, dtype)
    biases = biases if has_bias else [None] * len(counts)
    outputs, total = norm_linear(
        hidden, norm, EPS, weights, biases if has_bias else None, residual, is_gated=is_gated, backend=backend
    )
    assert torch.equal(total, hidden if residual is None else hidden + residual)
    assert (total is hidden) == (residual is None)
    plains = plain(total, norm, weights, biases, is_gated)
    truths = plain(*wide(total, norm), wide(*weights), wide(*biases), is_gated)
    for output, by_pytorch, truth in zip(outputs, plains, truths, strict=True):
        assert output.dtype == dtype
        assert_as_exact_as(output, by_pytorch, truth, scale=spread(truth))


@pytest.mark.parametrize("is_gated", [False, True])
def test_a_row_is_the_same_whatever_lies_beside_it(backend, draw, draw_layers, is_gated):
    hidden, residual, layers = draw(16, 304), draw(16, 304), draw_layers(304, (40, 40))
    run = lambda *states: norm_linear(states[0], *layers_of(layers), states[1], is_gated=is_gated, backend=backend)  # noqa: E731
    [first, *_], total = run(hidden, residual)
    hidden[:7], hidden[8:] = float("inf"), float("nan")
    [beside, *_], other_total = run(hidden, residual)
    [alone, *_], alone_total = run(hidden[7:8], residual[7:8])
    exactly = EXACTLY if backend == "triton" else {}  # a library may sum up otherwise beside other rows
    for row, row_total in ((beside[7], other_total[7]), (alone[0], alone_total[0])):
        torch.testing.assert_close(row, first[7], **exactly)
        assert torch.equal(row_total, total[7])


def layers_of(layers):
    """Norm, epsilon, weights and biases as the op takes them."""
    norm, weights, biases = layers
    return norm, EPS, weights, biases


@pytest.mark.parametrize("scale", [0.0, 1e-25, 1e-4, 1e15, float("inf"), float("nan")])
def test_extreme_rows_give_what_pytorch_gives(backend, draw, draw_layers, scale):
    hidden, (norm, weights, biases) = draw(4, 80), draw_layers(80, (9, 20))
    hidden[1] *= scale
    outputs, _ = norm_linear(hidden, norm, EPS, weights, biases, backend=backend)
    normed = functional.rms_norm(hidden, (80,), norm, EPS)
    for output, weight, bias in zip(outputs, weights, biases, strict=True):
        expected = functional.linear(normed, weight, bias)
        torch.testing.assert_close(output, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "norm_scale"), [(1e4, 30.0), (1e-4, 1e-3)])
def test_states_at_the_ends_of_a_narrow_dtype_are_not_lost(
    backend, draw, draw_layers, scale, norm_scale, assert_as_exact_as
):
    """fp16 times the norm's weight, before the row is scaled, lies beyond what fp16 holds."""
    dtype = DTYPES[1]
    hidden, (norm, weights, biases) = draw(4, 208, dtype=dtype, scale=scale), draw_layers(208, (9,), dtype)
    norm = norm * norm_scale
    [output], _ = norm_linear(hidden, norm, EPS, weights, biases, backend=backend)
    [truth] = plain(*wide(hidden, norm), wide(*weights), wide(*biases), False)
    normed = rms_norm(hidden.float(), norm.float()).to(dtype)
    assert_as_exact_as(output, functional.linear(normed, weights[0], biases[0]), truth, scale=spread(truth))


@pytest.mark.parametrize("gate", [0.0, 80.0, -80.0, 1e4, -1e4, 3e38, -3e38, float("inf"), float("nan")])
def test_a_gate_of_any_size_gives_what_pytorch_gives(backend, draw, gate):
    hidden, weight = draw(2, 16), draw(3, 16)
    biases = [torch.full_like(weight[:, 0], value) for value in (gate, 1.0)]
    silent = torch.zeros_like(weight)
    [output], _ = norm_linear(hidden, hidden[0], EPS, [silent, silent], biases, is_gated=True, backend=backend)
    expected = functional.silu(biases[0]).expand(2, 3)
    torch.testing.assert_close(output, expected, equal_nan=True, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("layout", ["rows apart", "rows crossed", "columns apart"])
def test_rows_may_lie_anywhere(backend, draw, draw_layers, layout):
    hidden, residual, layers = draw(3, 4, 32), draw(3, 4, 32), draw_layers(32, (10, 7))
    expected, total = norm_linear(hidden, *layers_of(layers), residual, backend=backend)
    others = strided(hidden, layout), strided(residual, layout)
    actual, actual_total = norm_linear(others[0], *layers_of(layers), others[1], backend=backend)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(actual_total, total)


def test_many_rows_are_normed_and_multiplied_one_after_the_other(draw, draw_layers):
    hidden, (norm, weights, biases) = draw(MAX_ROWS + 1, 24), draw_layers(24, (10, 10))
    [gated], total = norm_linear(hidden, norm, EPS, weights, biases, hidden, is_gated=True)
    normed, expected_total = add_rms_norm(hidden, norm, EPS, hidden)
    gate, up = (functional.linear(normed, *layer) for layer in zip(weights, biases, strict=True))
    assert torch.equal(gated, silu_mul(gate, up))
    assert torch.equal(total, expected_total)


def test_linear_layers_follow_autocast(draw, draw_layers):
    hidden, layers = draw(2, 24), draw_layers(24, (10,))
    with torch.autocast(hidden.device.type, torch.bfloat16):
        [output], total = norm_linear(hidden, *layers_of(layers), hidden)
    assert output.dtype == torch.bfloat16
    assert total.dtype == torch.float32


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("up to 16 rows, not 17", {"hidden": lambda x: x[0].expand(17, -1)}),
        (
            "a multiple of 16, not 7",
            {name: lambda x: x[..., :7].contiguous() for name in ("hidden", "norm_weight")}
            | {"weights": lambda x: [weight[:, :7].contiguous() for weight in x]},
        ),
        ("one dtype", {"norm_weight": torch.Tensor.double}),
        ("dtypes are", dict.fromkeys(("hidden", "norm_weight"), torch.Tensor.double)),
        ("weights are contiguous", {"weights": lambda x: [x[0].t().contiguous().t(), x[1]]}),
        ("a bias all of them or none", {"biases": lambda x: [None, x[1]]}),
    ],
)
def test_triton_says_why_it_cannot_run_and_is_not_chosen_then(backend, draw, draw_layers, reason, change):
    norm, weights, biases = draw_layers(16, (3, 4))
    arguments = {"hidden": draw(2, 16), "norm_weight": norm, "weights": weights, "biases": biases}
    arguments |= {name: function(arguments[name]) for name, function in change.items()}
    dtype = torch.promote_types(arguments["hidden"].dtype, arguments["norm_weight"].dtype)
    if dtype != torch.float32:
        arguments |= {name: [tensor.to(dtype) for tensor in arguments[name]] for name in ("weights", "biases")}
    with pytest.raises(RuntimeError, match=f"backend='triton' of norm_linear cannot run: .*{reason}"):
        norm_linear(**arguments, eps=EPS, backend=backend)
    outputs, _ = norm_linear(**arguments, eps=EPS)
    expected, _ = norm_linear(**arguments, eps=EPS, backend="reference")
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("backend", TRITON)
def test_triton_does_not_run_under_autocast(backend, draw, draw_layers):
    hidden, layers = draw(2, 16), draw_layers(16, (3,))
    with torch.autocast(hidden.device.type, torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        norm_linear(hidden, *layers_of(layers), backend=backend)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hidden", {"hidden": lambda x: x[0, 0]}),
        ("hidden", {"hidden": torch.Tensor.long}),
        ("eps", {"eps": lambda _: float("nan")}),
        ("norm_weight", {"norm_weight": lambda x: x[:7]}),
        ("norm_weight", {"norm_weight": lambda x: x.repeat_interleave(2)[::2]}),
        ("residual", {"residual": lambda x: x[:1]}),
        ("weights", {"weights": lambda _: []}),
        ("weights", {"weights": lambda x: [*x, *x], "biases": lambda x: [*x, *x]}),
        (r"weights\[1\]", {"weights": lambda x: [x[0], x[1][:, :7]]}),
        (r"weights\[0\]", {"weights": lambda x: [x[0][0], x[1]]}),
        (r"weights\[0\]", {"weights": lambda x: [x[0][:0], x[1]]}),
        (r"weights\[0\]", {"weights": lambda x: [x[0].long(), x[1]]}),
        (r"weights\[1\]", {"weights": lambda x: [x[0], x[1].bfloat16()]}),
        ("biases", {"biases": lambda x: x[:1]}),
        (r"biases\[1\]", {"biases": lambda x: [x[0], x[0]]}),
        (r"biases\[1\]", {"biases": lambda x: [x[0], x[1].double()]}),
        (r"weights\[1\]", {"is_gated": lambda _: True}),
        ("weights", {"is_gated": lambda _: True, "weights": lambda x: x[:1], "biases": lambda x: x[:1]}),
    ],
)
def test_a_bad_argument_is_named(draw, draw_layers, name, change):
    norm, weights, biases = draw_layers(16, (3, 4))
    arguments = {"hidden": draw(2, 16), "norm_weight": norm, "weights": weights, "biases": biases}
    arguments |= {"residual": draw(2, 16), "is_gated": False, "eps": EPS}
    arguments |= {changed: function(arguments[changed]) for changed, function in change.items()}
    with pytest.raises(ValueError, match=f"^{name} "):
        norm_linear(**arguments)
