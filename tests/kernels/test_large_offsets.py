"""The fast ops where an element lies more than 2^31 elements behind the first: 32-bit arithmetic would wrap around.

Needs up to 60 GB of GPU memory. The last rows are compared, which lie the furthest.
"""

from __future__ import annotations

import gc

import pytest
import torch
from relay_kernels import decode_attention, linear_log_probs, norm_linear, relay_step
from relay_kernels.backends import why_not_native
from relay_kernels.relay_step import RelayStepState, RowStatus, TokenSource
from step_state import put

NEEDED_BYTES = 70 << 30
has_room = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory >= NEEDED_BYTES
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_room, reason="needs a CUDA device with 70 GiB")]
DEVICE, DTYPE = "cuda", torch.bfloat16
TOLERANCE = {"rtol": 3e-2, "atol": 3e-2}
LAST = slice(-64, None)
STEP_BACKENDS = ["triton"] + ["native"] * (has_room and why_not_native(torch.device(DEVICE)) is None)


@pytest.fixture(autouse=True)
def _free_memory():
    yield
    gc.collect()
    torch.cuda.empty_cache()


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.empty(shape, device=DEVICE, dtype=DTYPE).normal_(std=scale)


@pytest.mark.parametrize("shape", [(1_100_000, 2048, 512), (64, 16_384, 151_936)], ids=["hidden", "head"])
def test_log_probs_and_gradients_of_far_rows_are_right(shape):
    num_tokens, dim, vocab_size = shape
    hidden, weight = normal(num_tokens, dim), normal(vocab_size, dim, scale=dim**-0.5)
    assert max(hidden.numel(), weight.numel()) > 2**31
    targets = torch.randint(vocab_size - 64, vocab_size, (num_tokens,), device=DEVICE)
    hidden.requires_grad_()
    weight.requires_grad_()
    log_probs, entropy = linear_log_probs(hidden, weight, targets, backend="triton")
    # Only the last tokens have a loss, so that the reference need not see the others.
    (log_probs[LAST].sum() + entropy[LAST].sum()).backward()
    tail, head = hidden.detach()[LAST].requires_grad_(), weight.detach().requires_grad_()
    expected, expected_entropy = linear_log_probs(tail, head, targets[LAST], backend="reference")
    (expected.sum() + expected_entropy.sum()).backward()
    torch.testing.assert_close(log_probs[LAST], expected, **TOLERANCE)
    torch.testing.assert_close(entropy[LAST], expected_entropy, **TOLERANCE)
    torch.testing.assert_close(hidden.grad[LAST], tail.grad, **TOLERANCE)
    torch.testing.assert_close(weight.grad[LAST], head.grad[LAST], **TOLERANCE)


@pytest.mark.parametrize("backend", STEP_BACKENDS)
@pytest.mark.parametrize("cut", [{"temperature": 0.0}, {"top_k": 50, "top_p": 0.9}], ids=str)
def test_every_row_of_a_large_batch_draws_its_own_token(backend, cut):
    num_rows, vocab_size, max_tokens = 16_384, 151_936, 140_000
    state = RelayStepState.empty(num_rows, max_tokens, DEVICE)
    assert num_rows * vocab_size > 2**31
    assert state.tokens.numel() > 2**31
    state.status.fill_(int(RowStatus.STUDENT))
    state.token_limit.fill_(max_tokens)
    state.num_tokens.fill_(max_tokens - 2)
    wanted = torch.arange(num_rows, device=DEVICE) * 7919 % vocab_size
    logits = torch.zeros(num_rows, vocab_size, device=DEVICE, dtype=DTYPE).scatter_(1, wanted[:, None], 40.0)
    ends = torch.tensor([-1], device=DEVICE)
    relay_step(logits, put(state, **cut), writer=TokenSource.STUDENT, eos_token_ids=ends, backend=backend)
    assert torch.equal(state.tokens[:, max_tokens - 2], wanted)
    assert torch.equal(state.last_token, wanted)
    assert (state.log_probs[:, max_tokens - 2].abs() < 1e-6).all()
    assert (state.num_tokens == max_tokens - 1).all()


@pytest.mark.parametrize("shape", [(64, 40_960), (1, 2_200_000)], ids=["blocks", "positions"])
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_the_last_block_and_the_last_positions_are_attended_to(shape, num_tokens):
    num_blocks, capacity = shape
    caches = [normal(num_blocks, capacity, 8, 128) for _ in range(2)]
    assert caches[0].numel() > 2**31
    last, length = num_blocks - 1, capacity - num_tokens
    query = normal(1, num_tokens, 16, 128, scale=4.0)  # A few positions hold most of the weight.
    new = {name: normal(1, num_tokens, 8, 128) for name in ("new_key", "new_value")}
    caches[0][last, length - 1] = query[0, -1, ::2]  # The last cached position is the best of all.
    lengths, table = torch.tensor([length], device=DEVICE), torch.tensor([[last]], device=DEVICE)
    copies = [cache[last:].clone() for cache in caches]
    output = decode_attention(query, *caches, lengths, **new, block_table=table, backend="triton")
    expected = decode_attention(query, *copies, lengths, **new, backend="reference")
    torch.testing.assert_close(output, expected, **TOLERANCE)
    assert torch.equal(caches[0][last, length:], new["new_key"][0])
    assert torch.equal(caches[1][last, length:], new["new_value"][0])


def test_blocks_far_into_the_cache_are_attended_to():
    cache = normal(131_200, 16, 8, 128)
    assert cache.numel() > 2**31
    query, table = normal(1, 1, 16, 128, scale=4.0), torch.tensor([[3, 131_199, 131_198]], device=DEVICE)
    lengths = torch.tensor([40], device=DEVICE)
    new = {name: normal(1, 1, 8, 128) for name in ("new_key", "new_value")}
    small = cache[table[0]].clone()
    output = decode_attention(query, cache, cache, lengths, **new, block_table=table, backend="triton")
    local = torch.tensor([[0, 1, 2]], device=DEVICE)
    expected = decode_attention(query, small, small, lengths, **new, block_table=local, backend="reference")
    torch.testing.assert_close(output, expected, **TOLERANCE)


@pytest.mark.parametrize("is_gated", [False, True])
def test_the_last_outputs_of_a_large_layer_are_right(is_gated):
    hidden, norm = normal(5, 4096), normal(4096)
    weights = [normal(600_000, 4096, scale=4096**-0.5) for _ in range(2)]
    assert weights[0].numel() > 2**31
    outputs, _ = norm_linear(hidden, norm, 1e-6, weights, is_gated=is_gated, backend="triton")
    tails = [weight[LAST] for weight in weights]
    expected, _ = norm_linear(hidden, norm, 1e-6, tails, is_gated=is_gated, backend="reference")
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output[:, LAST], wanted, **TOLERANCE)
