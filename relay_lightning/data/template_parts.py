"""TemplateParts: what a chat template writes around a question and after an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from relay_lightning.data.child_process import run_in_child

PROBE = "Qq 1  <i> {{x}} \"&' \\é~"
"""Stands for a message. A template that escapes or rewrites text changes one of its characters."""
EDGE = "\v"
"""White space before the probe, which a template that trims messages removes."""


@dataclass(frozen=True, slots=True)
class TemplateParts:
    """A chat template for one user message and the start of an answer, rendered once."""

    around: tuple[str, ...]
    """The text before the message and after it; more than two where the template writes the message several times."""
    trims: bool
    """White space at the ends of the message is removed."""
    turn_end: str
    """Text behind an assistant's message; empty if the template writes none."""

    def render(self, message: str) -> str:
        """The prompt with `message` from the user."""
        return self.shown(message).join(self.around)

    def shown(self, message: str) -> str:
        """The message as the template writes it."""
        return message.strip() if self.trims else message


def template_parts(tokenizer: PreTrainedTokenizerBase, day: date) -> TemplateParts:
    """The parts of the tokenizer's chat template, for a template that asks for the date on `day`.

    Raises ValueError when there is no chat template, it cannot be rendered, or it does not show the user's message.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} has no chat template: put chat_template.jinja into its folder, "
            "or name a file with student_loading.chat_template or teacher_loading.chat_template "
            "(for a base model a file with {{ messages[0].content }} will do)."
        )
    return _parts(tokenizer, str(tokenizer.chat_template), day)


@lru_cache(maxsize=16)
def _parts(tokenizer: PreTrainedTokenizerBase, _template: str, day: date) -> TemplateParts:
    # A template comes with a model and may be hostile.
    try:
        prompt, turn = run_in_child(lambda: _render_probes(tokenizer, day))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"The chat template of {tokenizer.name_or_path!r} cannot be used: {error}.") from None
    around = prompt.split(PROBE)
    trims = not all(text.endswith(EDGE) for text in around[:-1])
    if not trims:
        around = [*(text.removesuffix(EDGE) for text in around[:-1]), around[-1]]
    return TemplateParts(tuple(around), trims, turn.rpartition(PROBE)[2])


def _render_probes(tokenizer: PreTrainedTokenizerBase, day: date) -> tuple[str, str]:
    """The probe as a question, and as an answer (empty if the template takes none).

    The message is tried as a text and as a list of parts. Raises ValueError when neither shows the probe.
    """
    reason = "it does not show the question as it is, neither given as text nor as a list of parts"
    for wrap in (str, lambda text: [{"type": "text", "text": text}]):
        question = {"role": "user", "content": wrap(EDGE + PROBE)}
        answer = {"role": "assistant", "content": wrap(PROBE)}
        try:
            prompt = _render(tokenizer, [question], day, add_generation_prompt=True)
        except Exception as error:  # whatever the template raises
            reason = " ".join(str(error).split()) or type(error).__name__
            continue
        if PROBE in prompt:
            return prompt, _turn(tokenizer, [{**question, "content": wrap("?")}, answer], day)
    raise ValueError(reason.rstrip("."))


def _turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], day: date) -> str:
    try:
        text = _render(tokenizer, messages, day, add_generation_prompt=False)
    except Exception:  # a template for prompts only
        return ""
    return text if PROBE in text else ""


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], day: date, *, add_generation_prompt: bool
) -> str:
    with _clock_at(day):
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
        )
    return str(text)


@contextmanager
def _clock_at(day: date) -> Iterator[None]:
    """Has the templates' `strftime_now` read `day`: Transformers takes the clock's and lets no argument replace it."""
    clock = chat_template_utils.datetime
    chat_template_utils.datetime = SimpleNamespace(now=lambda: datetime.combine(day, time()))
    try:
        yield
    finally:
        chat_template_utils.datetime = clock
