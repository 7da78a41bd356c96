"""The teacher as the engine sees it: asked for spans of tokens, wherever it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from relay_lightning.engine.cuda_graphs import Capture
from relay_lightning.engine.runner_stats import RunnerStats
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.types import FinishReason


@dataclass(frozen=True, slots=True)
class TeacherCall:
    """A span to be written. Token ids are in the teacher's vocabulary."""

    sequence_id: int
    """Identity of the sequence; the smaller, the older."""
    new_token_ids: Sequence[int]
    """What the teacher has not seen of the sequence: the prompt at its first call, then what the student wrote."""
    num_tokens: int
    """Tokens to write at most."""
    max_context: int
    """Tokens that the sequence will have at most as the teacher reads it."""
    start: int
    """Completion tokens before the span, as the student counts them: position of its first draw."""
    sampling: SamplingParams
    seed: int
    prompt_id: int
    sample_index: int
    keeps_eos: bool
    """An end-of-sequence token belongs to the span; otherwise it only ends it."""


@dataclass(frozen=True, slots=True)
class TeacherSpan:
    """The answer to a call. The lists share one length."""

    sequence_id: int
    token_ids: list[int]
    log_probs: list[float]
    sampling_log_probs: list[float]
    finish_reason: FinishReason
    """DELIVERED, TEACHER_STOP at an end-of-sequence token, or TEACHER_ERROR."""


class Teacher(Protocol):
    """Writes spans for many sequences at once."""

    is_local: bool
    """True if `poll` decodes on the student's device; False if spans are written elsewhere in the meantime."""

    stats: RunnerStats
    """Counts of its passes in this process; all zero for a teacher elsewhere."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_context(self) -> int: ...

    @property
    def num_calls(self) -> int:
        """Calls that have not been answered."""

    def configure(
        self,
        max_num_seqs: int,
        block_size: int,
        num_token_ids: int,
        steps_per_sync: int,
        capture: Capture | None,
    ) -> None:
        """Prepares for up to `max_num_seqs` sequences at once, before anything else; ids from `num_token_ids` on are
        never written."""

    def open(self) -> None:
        """Opens a session, within which calls are answered."""

    def close(self) -> None:
        """Ends the session."""

    def kv_bytes_per_token(self) -> int:
        """Returns the bytes of keys and values of one token in this process; 0 for a teacher elsewhere."""

    def allocate(self, num_blocks: int) -> None:
        """Makes room for keys and values; 0 gives the memory back. Sequences that were held are read again."""

    def submit(self, call: TeacherCall) -> None:
        """Asks for a span of a sequence that has no other call open."""

    def poll(self) -> list[TeacherSpan]:
        """Returns the spans that are finished; a local teacher runs decode steps of the others first."""

    def recover(self) -> list[TeacherSpan]:
        """Returns the spans that were finished when a turn failed in this process; the other calls are begun anew."""

    def release(self, sequence_id: int) -> None:
        """Forgets a sequence, its open call included; one that is not known is left alone."""
