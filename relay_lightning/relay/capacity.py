"""How many tokens a slot of each writer has to hold."""

from __future__ import annotations

BRIDGE_EXPANSION = 3
"""Room in the teacher's slots for completions that take so many times more tokens in its vocabulary than in the
student's; one beyond it ends by length."""
CONTEXT_MARGIN = 16
"""Spare room in the teacher's slots: what is left of straddling tokens may take more tokens than the command did."""


def student_capacity(num_prompt_tokens: int, num_completion_tokens: int, max_context: int) -> int:
    """For a longest prompt and a completion of at most so many tokens, cut where the student's context ends."""
    return min(num_prompt_tokens + num_completion_tokens, max_context)


def teacher_capacity(
    num_student_tokens: int,
    num_prompt_tokens: int,
    num_completion_tokens: int,
    max_context: int,
    *,
    has_bridge: bool,
) -> int:
    """For what the student's slots hold, `num_student_tokens`.

    num_prompt_tokens: of the longest prompt in the teacher's vocabulary. has_bridge: whether that is another one.
    """
    if has_bridge:
        num_tokens = num_prompt_tokens + BRIDGE_EXPANSION * min(num_completion_tokens, num_student_tokens)
    else:
        num_tokens = num_student_tokens + CONTEXT_MARGIN
    return min(num_tokens, max_context)
