"""Where a measurement runs, and the random tensors that it runs on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SEED = 0


@dataclass(frozen=True, slots=True)
class Target:
    """A device, the backend that is measured there, and where its random numbers come from."""

    device: torch.device
    backend: str
    """By its own name, so that a result says what ran."""
    generator: torch.Generator | None = None

    @classmethod
    def of(cls, device: torch.device, backend: str) -> Target:
        """The generator is one of its own: a capture that fails leaves PyTorch's default one unusable."""
        return cls(device, backend, torch.Generator(device).manual_seed(SEED))

    @property
    def is_full(self) -> bool:
        """Whether the shapes are those that the bars are about; a CPU takes small ones."""
        return self.device.type != "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """bf16, or fp32 on a CPU, where the interpreter's bf16 product is wrong."""
        return torch.bfloat16 if self.is_full else torch.float32

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers of that standard deviation, at `dtype` of this target by default."""
        numbers = torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype or self.dtype)
        return numbers.mul_(scale)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers in [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.device, dtype=dtype)
