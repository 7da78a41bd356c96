"""`generate`: one question, answered by student and teacher together."""

from __future__ import annotations

from typing import Literal

from rich.console import Console

from relay_lightning.commands.parser import run_function
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.evaluation.transcript import transcript
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.pair import load_relay
from relay_lightning.types import Completion


def generate(
    question: str,
    student: str = "tiny:warm-student",
    teacher: str | None = "tiny:teacher",
    student_loading: LoadSettings = DEFAULT,
    teacher_loading: LoadSettings = DEFAULT,
    policy: Literal["command", "teacher_free", "teacher_only"] = "command",
    max_completion_tokens: int = 512,
    temperature: float = 0.0,
    max_calls: int | None = None,
    max_call_tokens: int | None = None,
    eos_policy: Literal["finish", "return"] = "finish",
    seed: int = 0,
) -> None:
    """Answers a question; the teacher's tokens are in colour, the commands that asked for them dimmed.

    Args:
        question: what to ask; it is put into the chat template.
        student: folder, hub id, `tiny:student` or `tiny:warm-student`.
        teacher: folder, hub id or `tiny:teacher`; null leaves the student alone.
        student_loading: number format, quantisation and attention of the student.
        teacher_loading: the same of the teacher.
        policy: who writes: the student until it calls, the student alone, or the teacher alone.
        max_completion_tokens: budget of the answer, the teacher's tokens included.
        temperature: 0 takes the most probable token.
        max_calls: calls at most; null sets no limit.
        max_call_tokens: tokens of one call at most; null sets no limit.
        eos_policy: what the teacher's end of sequence does: `finish` the answer, or `return` to the student.
        seed: of the samples.
    """
    relay = load_relay(
        student=student,
        teacher=teacher,
        num_slots=1,
        student_loading=student_loading,
        teacher_loading=teacher_loading,
    )
    (answer,) = relay.generate(
        [question],
        SamplingParams(max_completion_tokens, temperature),
        policy="teacher_free" if teacher is None else policy,
        max_calls=max_calls,
        max_call_tokens=max_call_tokens,
        eos_policy=eos_policy,
        seed=seed,
    )
    Console(highlight=False, soft_wrap=True).print(transcript(answer, relay.decoder.protocol.token_bytes))
    Console(stderr=True, highlight=False).print(summary_line(answer), style="dim", markup=False)


def summary_line(answer: Completion) -> str:
    """Tokens, calls, who wrote how much, and why the answer ended."""
    calls = "1 call" if answer.num_calls == 1 else f"{answer.num_calls} calls"
    return (
        f"{answer.num_tokens} tokens, {calls}, {answer.num_teacher_tokens} tokens by the teacher "
        f"(call ratio {answer.call_ratio:.1%}), ended by {answer.finish_reason.value}"
    )


def main(arguments: list[str]) -> None:
    """The subcommand."""
    run_function(generate, arguments, is_positional=True)
