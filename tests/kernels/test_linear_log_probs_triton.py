"""`linear_log_probs` in Triton, held to its definition: values and every gradient."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_backends import EXACTLY
from relay_kernels import linear_log_probs
from relay_kernels.linear_log_probs import triton_impl
from relay_kernels.linear_log_probs.reference import linear_log_probs_naive

# The interpreter's bf16 product is wrong.
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if torch.cuda.is_available() else (torch.float32, torch.float16)


def triton(hidden, weight, targets, bias=None, temperature=1.0):
    return linear_log_probs(hidden, weight, targets, bias, temperature, backend="triton")


def plain(hidden, weight, targets, bias=None, temperature=1.0):
    """Plain PyTorch at the dtype of the inputs: the product there, the softmax in fp32."""
    logits = hidden @ weight.T
    logits = (logits if bias is None else logits + bias).float() / temperature
    log_probs = torch.log_softmax(logits, dim=-1)
    entropy = torch.special.entr(log_probs.exp()).sum(-1)
    return log_probs.gather(1, targets[:, None])[:, 0], entropy


def draw(device, dtype, shape, *, scale=1.0, seed=0):
    num_tokens, vocab_size, dim = shape
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_tokens, dim, generator=generator) * scale
    weight = torch.randn(vocab_size, dim, generator=generator) * dim**-0.5
    bias = torch.randn(vocab_size, generator=generator)
    targets = torch.randint(vocab_size, (num_tokens,), generator=generator)
    return *(tensor.to(device, dtype) for tensor in (hidden, weight, bias)), targets.to(device)


def gradients(function, hidden, weight, bias, targets, *, uses=(True, True), **options):
    """Outputs and the gradients of a random mix of the outputs in use."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (hidden, weight, bias)]
    outputs = function(leaves[0], leaves[1], targets, bias=leaves[2], **options)
    generator = torch.Generator().manual_seed(7)
    mix = torch.randn(2, targets.shape[0], generator=generator).to(hidden.device)
    torch.stack([(out * grad).sum() for out, grad, use in zip(outputs, mix, uses, strict=True) if use]).sum().backward()
    return *(output.detach() for output in outputs), *(leaf.grad for leaf in leaves)


@pytest.fixture(params=[True, False], ids=["many_splits", "one_split"])
def small_splits(request, monkeypatch):
    """Splits of one tile and chunks of one tile, so that small shapes cross their edges; or none."""
    if request.param:
        monkeypatch.setattr(triton_impl, "SPLIT_TILES", 1)
        monkeypatch.setattr(triton_impl, "CHUNK_BYTES", 1)


@pytest.mark.usefixtures("poisoned_memory", "small_splits")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 300, 64), (33, 70, 40), (1, 1, 3)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_errs_at_most_twice_as_much_as_plain_pytorch(device, dtype, shape, temperature, assert_as_exact_as):
    inputs = draw(device, dtype, shape)
    doubles = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    truth = gradients(linear_log_probs_naive, *doubles, temperature=temperature)
    ours = gradients(triton, *inputs, temperature=temperature)
    plains = gradients(plain, *inputs, temperature=temperature)
    for mine, theirs, exact in zip(ours, plains, truth, strict=True):
        assert_as_exact_as(mine, theirs, exact, scale=max(1.0, float(exact.abs().max())))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("vocab_size", [151_936, 262_144])
def test_errs_at_most_twice_as_much_as_plain_pytorch_at_vocabularies_of_published_models(
    device, vocab_size, assert_as_exact_as
):
    inputs = draw(device, torch.bfloat16, (300, vocab_size, 128))
    doubles = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    truth = gradients(linear_log_probs_naive, *doubles)
    for mine, theirs, exact in zip(gradients(triton, *inputs), gradients(plain, *inputs), truth, strict=True):
        assert_as_exact_as(mine, theirs, exact, scale=max(1.0, float(exact.abs().max())))


@pytest.mark.parametrize("uses", [(True, False), (False, True)])
def test_an_output_that_is_not_used_adds_nothing(device, uses):
    inputs = draw(device, torch.float32, (9, 45, 16))
    expected = gradients(linear_log_probs_naive, *inputs, uses=uses)
    for mine, theirs in zip(gradients(triton, *inputs, uses=uses), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)


def logit_gradient(device, output, scale=1.0):
    """With hidden = identity, the gradient in the weight is the gradient in the logits, transposed: [T, V]."""
    num_tokens, vocab_size = 12, 500
    _, weight, _, targets = draw(device, torch.float32, (num_tokens, vocab_size, num_tokens))
    weight = (weight * scale).requires_grad_()
    triton(torch.eye(num_tokens, device=device), weight, targets)[output].sum().backward()
    return weight.grad.T, torch.softmax(weight.detach().T, dim=-1), targets


def test_target_and_other_entries_of_the_logit_gradient_are_each_right(device):
    grad, probs, targets = logit_gradient(device, output=0)
    is_target = torch.nn.functional.one_hot(targets, probs.shape[1]).bool()
    torch.testing.assert_close(grad[is_target], 1.0 - probs[is_target], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(grad[~is_target], -probs[~is_target], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_rows_of_the_logit_gradient_sum_to_zero(device, output, scale):
    grad, _, _ = logit_gradient(device, output, scale)
    assert grad.abs().max() > 1e-6
    assert grad.sum(1).abs().max() <= 1e-5 * max(1.0, float(grad.abs().sum(1).max()))


def test_extreme_logits_stay_finite(device):
    inputs = draw(device, torch.float32, (8, 50, 8), scale=1e4)
    ours, naive = gradients(triton, *inputs), gradients(linear_log_probs_naive, *inputs)
    for mine, theirs in zip(ours, naive, strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_forbidden_tokens_have_no_gradient_when_bias_is_minus_infinity(device, monkeypatch):
    monkeypatch.setattr(triton_impl, "SPLIT_TILES", 1)
    hidden, weight, bias, targets = draw(device, torch.float32, (16, 90, 8))
    targets = targets % 25
    bias[25:] = -math.inf  # splits of 32: the last one is forbidden as a whole
    ours = gradients(triton, hidden, weight, bias, targets)
    kept = gradients(linear_log_probs_naive, hidden, weight[:25], bias[:25], targets)
    for index in range(3):
        torch.testing.assert_close(ours[index], kept[index], rtol=2e-5, atol=2e-6)
    assert not ours[3][25:].any()
    assert not ours[4][25:].any()


def test_only_what_needs_a_gradient_gets_one(device):
    hidden, weight, bias, targets = draw(device, torch.float32, (6, 9, 4))
    hidden.requires_grad_()
    triton(hidden, weight, targets, bias)[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    weight.requires_grad_()
    triton(hidden.detach(), weight, targets)[1].sum().backward()
    assert weight.grad is not None


def test_no_tokens(device):
    hidden, weight, bias, targets = draw(device, torch.float32, (0, 9, 4))
    outputs = gradients(triton, hidden, weight, bias, targets)
    assert [output.numel() for output in outputs[:3]] == [0, 0, 0]
    assert not outputs[3].any()


def test_strided_inputs_equal_contiguous_ones(device):
    hidden, weight, bias, targets = draw(device, torch.float32, (7, 40, 12))
    expected = gradients(triton, hidden, weight, bias, targets)
    strided = hidden.T.contiguous().T, torch.cat([weight, weight], 1)[:, :12], bias, targets.repeat_interleave(2)[::2]
    for mine, theirs in zip(gradients(triton, *strided), expected, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACTLY)


def test_a_token_is_the_same_alone_and_in_a_batch(device):
    hidden, weight, bias, targets = draw(device, torch.float32, (40, 90, 24))
    batch = triton(hidden, weight, targets, bias)
    alone = triton(hidden[35:36], weight, targets[35:36], bias)
    torch.testing.assert_close(alone[0], batch[0][35:36], **EXACTLY)
    torch.testing.assert_close(alone[1], batch[1][35:36], **EXACTLY)


def test_a_weight_of_another_dtype_keeps_its_dtype_in_the_gradient(device):
    hidden, weight, _, targets = draw(device, torch.float32, (7, 40, 16))
    weight.requires_grad_()
    triton(hidden.half(), weight, targets)[0].sum().backward()
    assert weight.grad.dtype == torch.float32
    ours, weight.grad = weight.grad, None
    linear_log_probs_naive(hidden, weight, targets)[0].sum().backward()
    torch.testing.assert_close(ours, weight.grad, rtol=2e-2, atol=5e-3)


def test_a_target_outside_the_vocabulary_gives_nan_when_nobody_looked(device):
    hidden, weight, _, targets = draw(device, torch.float32, (3, 5, 4))
    targets[1] = -100
    log_probs, entropy = triton_impl.linear_log_probs_triton(hidden, weight, targets)
    assert log_probs.isnan().tolist() == [False, True, False]
    assert entropy.isfinite().all()


def test_a_dtype_it_has_not_is_refused(device):
    hidden, weight, bias, targets = draw(device, torch.float64, (3, 5, 4))
    with pytest.raises(RuntimeError, match="float64"):
        triton(hidden, weight, targets, bias)
