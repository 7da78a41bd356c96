"""What a decode run cost, and who wrote how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from relay_lightning.engine.runner_stats import RunnerStats
from relay_lightning.types import Completion


@dataclass(slots=True)
class DecodeStats:
    """Counts and seconds of one or more runs.

    On a GPU, seconds of decode steps end when the host has read their outcome; what is left of a chunk that was given
    before counts with them.
    """

    num_completions: int = 0
    num_calls: int = 0
    """Spans of the teacher, empty ones included."""
    num_requested_tokens: int = 0
    """Sum of the n that were asked for, before any clipping."""
    num_student_tokens: int = 0
    """Completion tokens written by the student, commands included."""
    num_command_tokens: int = 0
    """Student tokens spent on commands that were answered."""
    num_teacher_tokens: int = 0
    """Completion tokens written by the teacher."""
    num_student_prefill_tokens: int = 0
    """Tokens the student read that it had not just written: prompts and teacher spans (with the token before each)."""
    num_teacher_prefill_tokens: int = 0
    """Tokens the teacher read that it had not just written: prompts and the student's text."""
    num_shared_prefill_tokens: int = 0
    """Prompt tokens whose keys and values were copied from another row instead of being computed."""
    num_student_steps: int = 0
    """Batched single-token forward passes."""
    num_teacher_steps: int = 0
    num_student_chunks: int = 0
    """Batched forward passes over several tokens a row."""
    num_teacher_chunks: int = 0
    num_text_handovers: int = 0
    """Hand-overs that went through text because the models' vocabularies differ."""
    student_s: float = 0.0
    """Seconds in the student's decode steps."""
    teacher_s: float = 0.0
    prefill_s: float = 0.0
    """Seconds in both models' chunks and prefix copies."""
    host_s: float = 0.0
    """Seconds of bookkeeping between passes."""
    wall_s: float = 0.0

    def __add__(self, other: DecodeStats) -> DecodeStats:
        """The sum over both, field by field."""
        return DecodeStats(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def num_tokens(self) -> int:
        """Completion tokens of both authors."""
        return self.num_student_tokens + self.num_teacher_tokens

    @property
    def call_ratio(self) -> float:
        """Teacher tokens delivered over all completion tokens, sum over sum; 0.0 when nothing was written."""
        return self.num_teacher_tokens / self.num_tokens if self.num_tokens else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens per second of wall clock."""
        return self.num_tokens / self.wall_s if self.wall_s else 0.0

    def count(self, completion: Completion) -> None:
        """Adds one finished completion."""
        self.num_completions += 1
        self.num_calls += completion.num_calls
        self.num_requested_tokens += sum(span.num_requested_tokens for span in completion.spans)
        self.num_student_tokens += completion.num_tokens - completion.num_teacher_tokens
        self.num_command_tokens += completion.num_command_tokens
        self.num_teacher_tokens += completion.num_teacher_tokens


def with_passes(stats: DecodeStats, student: RunnerStats, teacher: RunnerStats | None) -> DecodeStats:
    """Returns `stats` with the passes of both models, and what is left of the time as the host's."""
    teacher = teacher or RunnerStats()
    prefill_s = student.prefill_s + teacher.prefill_s
    return replace(
        stats,
        num_student_prefill_tokens=student.num_prefill_tokens,
        num_teacher_prefill_tokens=teacher.num_prefill_tokens,
        num_shared_prefill_tokens=student.num_shared_prefill_tokens + teacher.num_shared_prefill_tokens,
        num_student_steps=student.num_steps,
        num_teacher_steps=teacher.num_steps,
        num_student_chunks=student.num_chunks,
        num_teacher_chunks=teacher.num_chunks,
        student_s=student.step_s,
        teacher_s=teacher.step_s,
        prefill_s=prefill_s,
        host_s=stats.wall_s - student.step_s - teacher.step_s - prefill_s,
    )


def call_ratio(completions: Sequence[Completion]) -> float:
    """Teacher tokens delivered over all tokens of `completions`, sum over sum; 0.0 when there are none."""
    num_tokens = sum(completion.num_tokens for completion in completions)
    return sum(completion.num_teacher_tokens for completion in completions) / num_tokens if num_tokens else 0.0
