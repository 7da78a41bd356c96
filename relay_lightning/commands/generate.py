"""`generate`: one question, answered by student and teacher together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

from rich.console import Console
from rich.segment import Segments
from rich.text import Text

from relay_lightning.commands.parser import run_function
from relay_lightning.data.chat_template import encode_prompt, make_prompt
from relay_lightning.data.prompt_limits import context_limit
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.evaluation.transcript import Transcriber, has_colour
from relay_lightning.models.loading import load_config, load_tokenizer
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.pair import load_relay, needs_bridge
from relay_lightning.relay.relay_config import AUTO, CallLimit
from relay_lightning.relay.text_stream import Piece
from relay_lightning.types import Completion

QUESTION = "Tom takes 5 pobu and 4 tana. What does Tom pay in coins?"
"""Two prices that only the embedded teacher knows."""
SAMPLING = SamplingParams(max_completion_tokens=512, temperature=0.0)
"""Default sampling for a student without a `relay_config.json`."""


def generate(
    question: str = QUESTION,
    student: str = "tiny:relay-student",
    teacher: str | None = "tiny:teacher",
    student_loading: LoadSettings = DEFAULT,
    teacher_loading: LoadSettings = DEFAULT,
    policy: Literal["command", "teacher_free", "teacher_only"] = "command",
    max_completion_tokens: int | None = None,
    temperature: float | None = None,
    max_calls: CallLimit = AUTO,
    max_call_tokens: CallLimit = AUTO,
    eos_policy: Literal["finish", "return", "auto"] = AUTO,
    spent_calls: Literal["text", "mask_close", "mask_open", "auto"] = AUTO,
    seed: int = 0,
) -> None:
    """Answers a question, and prints the answer as it is written.

    The teacher's tokens are in colour, the commands that asked for them dimmed.

    What is not given is taken from the student's `relay_config.json`, if it has one. `[3 of 9]` behind a command says
    that 3 of the 9 tokens it asked for were delivered.

    Without colour (in a file or a pipe, or with NO_COLOR set) the teacher's tokens stand in <teacher>...</teacher>.

    Args:
        question: what to ask; it is put into the chat template.
        student: folder, hub id, `tiny:student`, `tiny:warm-student` or `tiny:relay-student`.
        teacher: folder, hub id or `tiny:teacher`; null leaves the student alone.
        student_loading: number format, quantisation and attention of the student.
        teacher_loading: the same of the teacher.
        policy: who writes: the student until it calls, the student alone, or the teacher alone.
        max_completion_tokens: budget of the answer, the teacher's tokens included; null takes the student's, else 512.
        temperature: 0 takes the most probable token; null takes the student's, else 0.
        max_calls: calls at most; null sets no limit, `auto` takes the student's, else none.
        max_call_tokens: tokens of one call at most; null and `auto` as above.
        eos_policy: what the teacher's end of sequence does: `finish` the answer, `return` to the student, or `auto`,
            which takes the student's, else `finish`.
        spent_calls: what a command does where no call is possible: it stays as `text`, or the tokens that would close
            it (`mask_close`) or its opening tag (`mask_open`) are banned; `auto` takes the student's, else `text`.
        seed: of the samples.
    """
    policy = "teacher_free" if teacher is None else policy
    _require_room(question, student, student_loading, teacher if policy != "teacher_free" else None, teacher_loading)
    relay = load_relay(
        student=student,
        teacher=teacher,
        max_num_seqs=1,
        student_loading=student_loading,
        teacher_loading=teacher_loading,
    )
    given = {"max_completion_tokens": max_completion_tokens, "temperature": temperature}
    sampling = replace(
        relay.config.sampling or SAMPLING, **{name: value for name, value in given.items() if value is not None}
    )
    pieces = relay.stream(
        question,
        sampling,
        policy=policy,
        max_calls=max_calls,
        max_call_tokens=max_call_tokens,
        eos_policy=eos_policy,
        spent_calls=spent_calls,
        seed=seed,
    )
    answer = print_pieces(pieces, Console(highlight=False))
    Console(stderr=True, highlight=False, soft_wrap=True).print(summary_line(answer), style="dim", markup=False)


def print_pieces(pieces: Iterator[Piece], console: Console) -> Completion:
    """Prints the pieces of an answer as they come, and returns the answer."""
    transcriber = Transcriber(marks_teacher=not has_colour(console))

    def show(text: Text) -> None:
        # A `Text` would have its tabs expanded and its lines stripped, each piece by itself.
        console.print(Segments(text.render(console)), end="", soft_wrap=True)

    for piece in pieces:
        if piece.span is not None:
            show(transcriber.note(piece.span))
        show(transcriber.write(piece.text, piece.author))
    show(transcriber.end_run().append("\n"))
    assert piece.completion is not None
    return piece.completion


def _require_room(
    question: str, student: str, student_loading: LoadSettings, teacher: str | None, teacher_loading: LoadSettings
) -> None:
    """Raises ValueError, before weights are loaded, for a question that leaves no room in the context of a model."""
    tokenizer = load_tokenizer(student, student_loading)
    prompt = make_prompt(tokenizer, 0, question)
    context_limit("student", load_config(student, student_loading)).require(prompt)
    if teacher is not None:
        reader = load_tokenizer(teacher, teacher_loading)
        encode = partial(encode_prompt, reader) if needs_bridge(tokenizer, reader) else None
        context_limit("teacher", load_config(teacher, teacher_loading), encode).require(prompt)


def summary_line(answer: Completion) -> str:
    """Tokens, calls, who wrote how much, and why the answer ended."""
    calls = "1 call" if answer.num_calls == 1 else f"{answer.num_calls} calls"
    return (
        f"{answer.num_tokens} tokens, {calls}, {answer.num_teacher_tokens} tokens by the teacher "
        f"(call ratio {answer.call_ratio:.1%}), ended by {answer.finish_reason.value}"
    )


def main(arguments: list[str]) -> None:
    """The subcommand."""
    run_function(generate, arguments, positional="question")
