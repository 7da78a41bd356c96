"""How tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One way of sampling, shared by all rows of a run. Raises ValueError that names the field."""

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

    def __post_init__(self) -> None:
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
    def is_greedy(self) -> bool:
        return self.temperature == 0
