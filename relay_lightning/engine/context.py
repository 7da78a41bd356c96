"""Context: what one model reads and writes of one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Context:
    """The tokens of a sequence as one model sees them, and the KV blocks that hold them."""

    age: int
    """Order of arrival; the smaller, the older."""
    row: int
    """Row of the runner's tensors."""
    token_ids: list[int]
    """Prompt and completion up to `position`; grows in place."""
    num_prompt_tokens: int
    """Leading tokens whose blocks other contexts may share."""
    max_tokens: int
    """Tokens that it can have at most."""
    position: int = 0
    """Completion tokens in `token_ids` as the sampling counts them; over a text bridge the student's tokens."""
    num_written: int = 0
    """Completion tokens on the device. Those behind `position` have not been copied to `token_ids` yet."""
    log_probs: list[float] = field(default_factory=list)
    """Log-probabilities of the completion's tokens, or of those that this model wrote last."""
    sampling_log_probs: list[float] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    """Block table."""
    num_cached: int = 0
    """Leading tokens whose keys and values are in `blocks`, before the decode steps of the present run."""

    @property
    def num_tokens(self) -> int:
        """Length of the context, device tokens included."""
        return len(self.token_ids) + self.num_written - self.position
