"""`linear_log_probs` against a naive twin, finite differences and numbers by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from pretend_cuda import pretend_cuda
from relay_kernels import linear_log_probs
from relay_kernels.linear_log_probs.reference import linear_log_probs_naive

REFERENCE = sys.modules["relay_kernels.linear_log_probs.reference"]


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of a few tokens, so that small shapes cross their edges."""
    monkeypatch.setattr(REFERENCE, "CHUNK_ELEMENTS", 100)


def draw(num_tokens, vocab_size, dim, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, dim, generator=generator).mul(scale).to(dtype)
    weight = torch.randn(vocab_size, dim, generator=generator).to(dtype)
    bias = torch.randn(vocab_size, generator=generator).to(dtype)
    targets = torch.randint(vocab_size, (num_tokens,), generator=generator)
    return hidden, weight, bias, targets


def gradients(function, hidden, weight, bias, targets, **options):
    """Outputs and the gradients of a random mix of both outputs in hidden, weight and bias."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (hidden, weight, bias)]
    log_probs, entropy = function(leaves[0], leaves[1], targets, bias=leaves[2], **options)
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(2, targets.shape[0], generator=generator, dtype=torch.float64).to(log_probs.dtype)
    ((log_probs * grad[0]).sum() + (entropy * grad[1]).sum()).backward()
    return log_probs.detach(), entropy.detach(), *(leaf.grad for leaf in leaves)


def test_values_by_hand():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3.0)]])
    log_probs, entropy = linear_log_probs(hidden, weight, torch.tensor([1]))
    assert float(log_probs) == pytest.approx(math.log(0.75))
    assert float(entropy) == pytest.approx(-0.25 * math.log(0.25) - 0.75 * math.log(0.75))


def test_temperature_flattens_by_hand():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(9.0)]])
    log_probs, _ = linear_log_probs(hidden, weight, torch.tensor([1]), temperature=2.0)
    assert float(log_probs) == pytest.approx(math.log(0.75))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 3), (37, 11, 5), (5, 257, 8), (64, 64, 16)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_equals_naive_in_double(shape, temperature):
    inputs = draw(*shape, dtype=torch.float64)
    chunked = gradients(linear_log_probs, *inputs, temperature=temperature)
    naive = gradients(linear_log_probs_naive, *inputs, temperature=temperature)
    for ours, theirs in zip(chunked, naive, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("small_chunks")
def test_gradients_equal_finite_differences():
    hidden, weight, bias, targets = draw(9, 13, 4, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda h, w, b: linear_log_probs(h, w, targets, b, temperature=1.3), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_errs_at_most_twice_as_much_as_plain_pytorch(dtype):
    """Truth in fp64 from the same rounded inputs; plain PyTorch multiplies in `dtype` and continues in fp32."""
    hidden, weight, bias, targets = draw(48, 301, 32, dtype=dtype)

    def plain(hidden, weight, targets, bias):
        logits = (hidden @ weight.T + bias).float()
        log_probs = torch.log_softmax(logits, dim=-1)
        return log_probs.gather(1, targets[:, None])[:, 0], -(log_probs.exp() * log_probs).sum(-1)

    truth = gradients(linear_log_probs_naive, hidden.double(), weight.double(), bias.double(), targets)
    ours = gradients(linear_log_probs, hidden, weight, bias, targets)
    plains = gradients(plain, hidden, weight, bias, targets)
    for exact, mine, theirs in zip(truth, ours, plains, strict=True):
        error = (mine.double() - exact).abs().max()
        assert error <= 2.0 * (theirs.double() - exact).abs().max() + 1e-6
    assert ours[0].dtype == ours[1].dtype == torch.float32
    assert [grad.dtype for grad in ours[2:]] == [dtype] * 3


@pytest.mark.usefixtures("small_chunks")
def test_target_and_other_entries_of_the_logit_gradient_are_each_right():
    """With hidden = identity the gradient in the weight is the logit gradient, transposed.

    A gradient whose 151,935 other entries are all zero passes a loose common tolerance; so look at them apart.
    """
    num_tokens, vocab_size = 12, 40
    _, weight, _, targets = draw(num_tokens, vocab_size, num_tokens, dtype=torch.float64)
    weight.requires_grad_()
    log_probs, _ = linear_log_probs(torch.eye(num_tokens, dtype=torch.float64), weight, targets)
    log_probs.sum().backward()
    logit_gradient, probs = weight.grad.T, torch.softmax(weight.detach().T, dim=-1)
    is_target = torch.nn.functional.one_hot(targets, vocab_size).bool()
    torch.testing.assert_close(logit_gradient[is_target], 1.0 - probs[is_target], rtol=1e-10, atol=0.0)
    torch.testing.assert_close(logit_gradient[~is_target], -probs[~is_target], rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_rows_of_the_logit_gradient_sum_to_zero(output, scale):
    num_tokens, vocab_size = 8, 1000
    _, weight, _, targets = draw(num_tokens, vocab_size, num_tokens)
    weight = (weight * scale).requires_grad_()
    linear_log_probs(torch.eye(num_tokens), weight, targets)[output].sum().backward()
    row_sums = weight.grad.sum(dim=0)
    assert weight.grad.abs().max() > 1e-6
    assert row_sums.abs().max() <= 1e-5 * max(1.0, float(weight.grad.abs().sum(dim=0).max()))


@pytest.mark.usefixtures("small_chunks")
def test_a_token_equals_itself_in_a_batch():
    hidden, weight, bias, targets = draw(33, 17, 6, dtype=torch.float64)
    batch = linear_log_probs(hidden, weight, targets, bias)
    for token in range(33):
        row = slice(token, token + 1)
        alone = linear_log_probs(hidden[row], weight, targets[row], bias)
        torch.testing.assert_close(alone[0], batch[0][row])
        torch.testing.assert_close(alone[1], batch[1][row])


def test_only_what_needs_a_gradient_gets_one():
    hidden, weight, bias, targets = draw(6, 9, 4)
    hidden.requires_grad_()
    linear_log_probs(hidden, weight, targets, bias)[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    weight.requires_grad_()
    bias.requires_grad_()
    linear_log_probs(hidden.detach(), weight, targets, bias)[1].sum().backward()
    assert weight.grad is not None
    assert bias.grad is not None


def test_unused_output_adds_nothing():
    hidden, weight, _, targets = draw(6, 9, 4, dtype=torch.float64)
    for output in (0, 1):
        ours, naive = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
        linear_log_probs(ours, weight, targets)[output].sum().backward()
        linear_log_probs_naive(naive, weight, targets)[output].sum().backward()
        torch.testing.assert_close(ours.grad, naive.grad)


def test_never_allocates_tokens_times_vocabulary(small_chunks):  # noqa: ARG001
    """Every tensor made in a forward and backward pass stays below [T, V]."""
    num_tokens, vocab_size = 64, 50
    hidden, weight, bias, targets = draw(num_tokens, vocab_size, 4)
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(
                tensor.numel() for tensor in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(tensor)
            )
            return result

    with Sizes():
        gradients(linear_log_probs, hidden, weight, bias, targets)
    assert len(sizes) > 20
    assert max(sizes) <= max(hidden.numel(), weight.numel(), 100) < num_tokens * vocab_size


def test_autocast_changes_nothing():
    hidden, weight, bias, targets = draw(16, 50, 32)
    plain = gradients(linear_log_probs, hidden, weight, bias, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = gradients(linear_log_probs, hidden, weight, bias, targets)
    for ours, theirs in zip(mixed, plain, strict=True):
        assert torch.equal(ours, theirs)


def test_extreme_logits_stay_finite():
    hidden, weight, bias, targets = draw(16, 50, 8, scale=1e4)
    for result in gradients(linear_log_probs, hidden, weight, bias, targets):
        assert torch.isfinite(result).all()


def test_forbidden_tokens_have_no_gradient_when_bias_is_minus_infinity():
    hidden, weight, bias, targets = draw(16, 50, 8, dtype=torch.float64)
    targets, bias[25:] = targets % 25, -math.inf
    ours = gradients(linear_log_probs, hidden, weight, bias, targets)
    kept = gradients(linear_log_probs, hidden, weight[:25], bias[:25], targets)
    for index in (0, 1, 2):
        torch.testing.assert_close(ours[index], kept[index])
    for index in (3, 4):
        torch.testing.assert_close(ours[index][:25], kept[index])
        assert (ours[index][25:] == 0.0).all()


def test_non_contiguous_inputs_give_what_contiguous_ones_give():
    hidden, weight, bias, targets = draw(12, 20, 6)
    spread = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in (hidden, weight, bias, targets)]
    assert not spread[0].is_contiguous()
    ours = gradients(linear_log_probs, *spread)
    for mine, theirs in zip(ours, gradients(linear_log_probs, hidden, weight, bias, targets), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_empty_results_and_zero_gradients_when_there_are_no_tokens():
    log_probs, entropy, *grads = gradients(linear_log_probs, *draw(0, 7, 3))
    assert log_probs.shape == entropy.shape == (0,)
    assert [tuple(grad.shape) for grad in grads] == [(0, 3), (7, 3), (7,)]
    assert all((grad == 0.0).all() for grad in grads)


@pytest.mark.slow
def test_vocabulary_of_qwen_errs_no_more_than_naive():
    hidden, weight, bias, targets = draw(300, 151_936, 16)
    truth = gradients(linear_log_probs_naive, hidden.double(), weight.double(), bias.double(), targets)
    ours = gradients(linear_log_probs, hidden, weight, bias, targets)
    naive = gradients(linear_log_probs_naive, hidden, weight, bias, targets)
    for exact, mine, theirs in zip(truth, ours, naive, strict=True):
        assert (mine - exact).abs().max() <= (theirs - exact).abs().max()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"hidden": torch.zeros(4)}, "hidden"),
        ({"hidden": torch.zeros(4, 3, dtype=torch.int64)}, "hidden"),
        ({"weight": torch.zeros(5, 4)}, "weight"),
        ({"weight": torch.zeros(0, 3)}, "weight"),
        ({"weight": torch.zeros(5, 3, dtype=torch.int64)}, "weight"),
        ({"bias": torch.zeros(4)}, "bias"),
        ({"bias": torch.zeros(5, dtype=torch.int64)}, "bias"),
        ({"targets": torch.zeros(3, dtype=torch.int64)}, "targets"),
        ({"targets": torch.zeros(4)}, "targets"),
        ({"targets": torch.tensor([0, 1, 5, 0])}, "targets"),
        ({"targets": torch.tensor([0, 1, -100, 0])}, "targets"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"backend": "abacus"}, "backend"),
    ],
)
def test_error_names_the_argument_when_it_is_wrong(change, name):
    arguments = {"hidden": torch.zeros(4, 3), "weight": torch.zeros(5, 3), "targets": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(ValueError, match=name):
        linear_log_probs(**(arguments | change))


def test_a_target_outside_the_vocabulary_is_named_on_a_gpu_too():
    with pretend_cuda():
        hidden, weight = torch.zeros(2, 3, device="cuda"), torch.zeros(5, 3, device="cuda")
        with pytest.raises(ValueError, match=r"targets must lie in \[0, 5\); got values from -100 to 1"):
            linear_log_probs(hidden, weight, torch.tensor([1, -100], device="cuda"))
