"""Kernel tests: where Triton's tests run, and the one rule by which a kernel's error is judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_backends import BACKENDS, INTERPRETED
from torch import Tensor

TINY = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""One rounding of a result near 1: the error below which two computations do not differ."""

# The interpreter must be chosen before Triton is first imported, so these files run in a process of their own
# (test_interpreter.py), or directly where there is a CUDA device.
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*_triton.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Triton's tests want a device, so `pytest -m gpu` runs them there."""
    if not INTERPRETED:
        for item in items:
            if item.path.match("tests/kernels/test_*_triton.py"):
                item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> torch.device:
    """Where Triton's kernels run in this process."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend that runs in this process."""
    return request.param


@pytest.fixture
def draw(backend: str) -> Callable[..., Tensor]:
    """Normal numbers of a shape and dtype where `backend` runs, always the same."""
    device = "cuda" if backend == "triton" and not INTERPRETED else "cpu"
    generator = torch.Generator().manual_seed(0)
    return lambda *shape, dtype=torch.float32, scale=1.0: (torch.randn(*shape, generator=generator) * scale).to(
        device, dtype
    )


@pytest.fixture(scope="session")
def assert_as_exact_as() -> Callable[..., None]:
    """Asserts that `actual` errs against `truth` at most twice as much as `plain`, PyTorch at the same dtype."""

    def check(actual: Tensor, plain: Tensor, truth: Tensor, *, scale: float = 1.0) -> None:
        assert actual.shape == truth.shape
        assert not torch.isnan(actual).any(), "an output was left unwritten"
        infinite = torch.isinf(truth)
        assert torch.equal(actual[infinite].double(), truth[infinite].double())
        error = (actual.double() - truth.double())[~infinite].abs()
        allowed = (plain.double() - truth.double())[~infinite].abs()
        if error.numel():
            assert error.max() <= 2 * allowed.nan_to_num(0.0).max() + TINY[actual.dtype] * scale

    return check


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills what torch.empty and new_empty hand out with NaN (integers with -1), so that an unwritten output shows."""
    empty, new_empty = torch.empty, Tensor.new_empty

    def poison(tensor: Tensor) -> Tensor:
        return (
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1) if tensor.dtype != torch.bool else tensor
        )

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **kwargs: poison(torch.zeros_like(tensor, **kwargs)))
    monkeypatch.setattr(Tensor, "new_empty", lambda *args, **kwargs: poison(new_empty(*args, **kwargs)))
