"""RunnerStats: counts and seconds of one model's passes."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class RunnerStats:
    """Seconds on a GPU end when the host has read the outcome of decode steps."""

    num_prefill_tokens: int = 0
    """Tokens read that the model had not just written."""
    num_shared_prefill_tokens: int = 0
    """Prompt tokens whose keys and values were shared with another row instead of being computed."""
    num_chunks: int = 0
    """Batched forward passes over several tokens a row."""
    num_steps: int = 0
    """Batched forward passes over one token a row."""
    prefill_s: float = 0.0
    step_s: float = 0.0

    def reset(self) -> None:
        """Sets everything to zero."""
        for each in fields(self):
            setattr(self, each.name, each.default)
