"""The hand-over between two vocabularies: through text, exactly once in each direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import Prompt


@dataclass(frozen=True)
class TextBridge:
    """Carries tokens between a student and a teacher whose token ids mean different things.

    What one side wrote since the last hand-over is spelled once in the other's vocabulary and never again. Special
    tokens are no text and stay behind.
    """

    student: Vocabulary
    teacher: Vocabulary
    encode_prompt: Callable[[Prompt], Sequence[int]]
    """The prompt in the teacher's own vocabulary and chat template."""

    def to_teacher(self, token_ids: Sequence[int]) -> list[int]:
        """The student's token ids in the teacher's vocabulary."""
        return self.teacher.spell(self.student.bytes_of(token_ids))

    def to_student(self, token_ids: Sequence[int]) -> list[int]:
        """The teacher's token ids in the student's vocabulary."""
        return self.student.spell(self.teacher.bytes_of(token_ids))
