"""FlashAttention as a backend: what our arguments become in its terms, and that it runs only where it is asked for."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import flash_attention
import pytest
import torch
from relay_kernels import backends, decode_attention
from relay_kernels.decode_attention import flash_impl
from relay_kernels.decode_attention.flash_impl import BLOCK_STEP, why_not_flash

NUM_SLOTS, CAPACITY, SIZE = 5, 24, 16


@pytest.fixture
def _double(monkeypatch):
    """FlashAttention's double in its place, which takes any device and dtype."""
    monkeypatch.setitem(sys.modules, "flash_attn", flash_attention)
    monkeypatch.setattr(sys.modules["relay_kernels.decode_attention"], "why_not_flash", lambda *_: None)


def make(num_tokens, lengths=(0, 7, 3), device="cpu", dtype=torch.float32, is_appending=True):
    """Slots that hold NaN beyond their rows' lengths."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    caches = [draw(NUM_SLOTS, CAPACITY, 2, SIZE) for _ in range(2)]
    new = {name: draw(len(lengths), num_tokens, 2, SIZE) for name in ("new_key", "new_value")}
    for cache in caches:
        for row, length in enumerate(lengths):
            cache[row, length + (0 if is_appending else num_tokens) :] = torch.nan
    return {
        "query": draw(len(lengths), num_tokens, 4, SIZE),
        "key_cache": caches[0],
        "value_cache": caches[1],
        "cache_seqlens": torch.tensor(lengths, dtype=torch.int64, device=device),
        **(new if is_appending else {}),
    }


def assert_flash_is_the_reference(inputs, **options):
    ours, theirs = ({name: tensor.clone() for name, tensor in inputs.items()} for _ in range(2))
    tolerance = {"rtol": 1.6e-2, "atol": 1e-2} if inputs["query"].dtype == torch.bfloat16 else {}
    expected = decode_attention(**theirs, **options, backend="reference")
    torch.testing.assert_close(decode_attention(**ours, **options, backend="flash"), expected, **tolerance)
    for name in ("key_cache", "value_cache"):
        assert torch.equal(ours[name].nan_to_num(9.0), theirs[name].nan_to_num(9.0))


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("is_appending", [True, False])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_whole_chunk_is_attended_to_as_defined(num_tokens, is_appending, scale):
    assert_flash_is_the_reference(make(num_tokens, is_appending=is_appending), scale=scale)


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("num_new", [[5, 2, 0], [1, 5, 4]])
@pytest.mark.parametrize("blocks", [None, [[0], [1], [2]]])
def test_padding_is_neither_appended_nor_attended_to(num_new, blocks):
    table = None if blocks is None else torch.tensor(blocks, dtype=torch.int64)
    # The last row ends at the capacity: its padding must not be read beyond it.
    inputs = make(5, lengths=(0, 7, CAPACITY - num_new[2]))
    assert_flash_is_the_reference(inputs, num_new=torch.tensor(num_new), block_table=table)


@pytest.mark.usefixtures("_double")
def test_rows_that_rest_stay_as_they_are_in_a_step():
    assert_flash_is_the_reference(make(1), num_new=torch.tensor([1, 0, 1]))
    assert_flash_is_the_reference(make(1), num_new=torch.tensor([0, 0, 0]))


@pytest.mark.usefixtures("_double")
def test_rows_use_the_blocks_they_are_given():
    inputs = make(2)
    for name in ("key_cache", "value_cache"):
        inputs[name] = inputs[name][[3, 0, 4, 2, 1]]
    assert_flash_is_the_reference(inputs, block_table=torch.tensor([[1], [4], [3]]))


@pytest.mark.usefixtures("_double")
@pytest.mark.parametrize("num_new", [None, [5, 2, 0]])
def test_rows_of_several_blocks_are_read_through_their_table(num_new):
    inputs = make(5, lengths=(250, 255, 509))
    generator = torch.Generator().manual_seed(1)
    for name in ("key_cache", "value_cache"):
        inputs[name] = torch.randn(7, BLOCK_STEP, 2, SIZE, generator=generator)
    table = torch.tensor([[6, 1, 99], [0, 3, -1], [2, 4, 5]])
    assert_flash_is_the_reference(inputs, num_new=None if num_new is None else torch.tensor(num_new), block_table=table)


@pytest.mark.usefixtures("_double")
def test_nothing_is_computed_when_there_are_no_rows():
    assert decode_attention(**make(2, lengths=()), backend="flash").shape == (0, 2, 4, SIZE)


def test_it_is_refused_with_the_reason_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(flash_impl, "has_flash_attention", lambda: False)
    with pytest.raises(RuntimeError, match="'flash' of decode_attention cannot run: the package 'flash-attn' is not"):
        decode_attention(**make(1), backend="flash")
    monkeypatch.setattr(flash_impl, "has_flash_attention", lambda: True)
    with pytest.raises(RuntimeError, match="the tensors are on cpu"):
        decode_attention(**make(1), backend="flash")

    def on_gpu(dtype, size):
        return SimpleNamespace(is_cuda=True, dtype=dtype, shape=(1, 1, 4, size))

    cache, table = torch.empty(4, 16, 2, 64), torch.zeros(1, 3)
    assert "not torch.float32" in why_not_flash(on_gpu(torch.float32, 64), cache, None)
    assert "not 36" in why_not_flash(on_gpu(torch.float16, 36), cache, None)
    assert "not 264" in why_not_flash(on_gpu(torch.float16, 264), cache, None)
    assert "a multiple of 256 tokens, not 16" in why_not_flash(on_gpu(torch.bfloat16, 128), cache, table)
    assert why_not_flash(on_gpu(torch.bfloat16, 128), cache, table[:, :1]) is None


def test_it_never_runs_unasked_and_in_no_other_op(monkeypatch):
    monkeypatch.setattr(backends, "has_triton", lambda: True)
    assert backends.choose_backend("op", "auto", torch.device("cuda"), no_flash=None) == "triton"
    with pytest.raises(RuntimeError, match="'flash' of op cannot run: FlashAttention has no such op"):
        backends.choose_backend("op", "flash", torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("num_tokens", [1, 5])
@pytest.mark.parametrize("num_new", [None, [1, 0, 1]])
@pytest.mark.parametrize("block_table", [None, [[0], [1], [2]]])
def test_flash_attention_itself_does_what_its_double_does(num_tokens, num_new, block_table):
    pytest.importorskip("flash_attn")
    options = {
        name: None if values is None else torch.tensor(values, device="cuda")
        for name, values in (("num_new", num_new), ("block_table", block_table))
    }
    assert_flash_is_the_reference(make(num_tokens, device="cuda", dtype=torch.bfloat16), **options)
