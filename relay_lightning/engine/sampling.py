"""How tokens are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay_kernels.relay_step import signed_seed


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one completion are drawn, and when it ends. Raises ValueError that names the field."""

    max_completion_tokens: int = 1024
    """Budget of a completion: student tokens, commands and teacher tokens together."""
    temperature: float = 1.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most probable tokens that together hold this mass; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this many times as probable as the most probable one; 0 keeps all."""

    stop: tuple[str, ...] = ()
    """Texts that end the completion, whoever writes them; neither they nor what follows them is part of its text."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop must be a tuple of texts that are not empty, not {self.stop!r}")
        if self.max_completion_tokens < 1:
            raise ValueError(f"max_completion_tokens must be at least 1, not {self.max_completion_tokens}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 is off), not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must lie in [0, 1], not {self.min_p}")

    @property
    def truncates(self) -> bool:
        """True if top-k, top-p or min-p can cut tokens away."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def sampling_rows(samplings: Sequence[SamplingParams], seeds: Sequence[int]) -> dict[str, list[float]]:
    """Returns the fields of `RelayStepState` that say how tokens are drawn, one value per row."""
    return {
        "temperature": [sampling.temperature for sampling in samplings],
        "top_k": [sampling.top_k for sampling in samplings],
        "top_p": [sampling.top_p for sampling in samplings],
        "min_p": [sampling.min_p for sampling in samplings],
        "seed": [signed_seed(seed) for seed in seeds],
    }
