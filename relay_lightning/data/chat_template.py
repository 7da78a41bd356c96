"""From a question to the prompt that both models read: one user message, no system prompt, no thinking."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from relay_lightning.data.template_parts import TemplateParts, template_parts
from relay_lightning.models.continuation import continuations
from relay_lightning.terminal import quote
from relay_lightning.types import Prompt

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""Follows the question after a line end (paper, appendix)."""


def render_prompt(tokenizer: PreTrainedTokenizerBase, question: str, day: date | None = None) -> str:
    """The chat-templated text up to where the assistant begins.

    day: what a template that writes the date takes for today; by default today. Raises as `template_parts` does.
    """
    return template_parts(tokenizer, day or date.today()).render(_message(question))


def make_prompt(
    tokenizer: PreTrainedTokenizerBase,
    prompt_id: int,
    question: str,
    answer: str | None = None,
    day: date | None = None,
) -> Prompt:
    """The prompt in the vocabulary of `tokenizer`, its student's.

    Control tokens of the prompt are the template's own; those spelled out in the question are encoded as text. Raises
    as `render_prompt` does, and ValueError for a question in which that is not possible.
    """
    parts = template_parts(tokenizer, day or date.today())
    text = parts.render(_message(question))
    control, own = _control_tokens(tokenizer, parts)
    token_ids = _encode(tokenizer, text)
    if [token for token in token_ids if token in control] != own:
        token_ids = _encode_around(tokenizer, parts, _message(question), [*control.values()])
        if [token for token in token_ids if token in control] != own:
            raise ValueError(
                f"question {prompt_id} holds a control token that cannot be encoded as text: {quote(question)}"
            )
    return Prompt(prompt_id, tuple(token_ids), text, question, answer)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, day: date | None = None) -> list[int]:
    """The prompt in the vocabulary and chat template of another `tokenizer`, its teacher's.

    A prompt that was given as tokens has no question: its text is encoded as it stands.
    """
    if prompt.question:
        return list(make_prompt(tokenizer, prompt.prompt_id, prompt.question, day=day).token_ids)
    return _encode(tokenizer, prompt.text)


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: what the chat template writes after an assistant's message, and `eos_token`."""
    ids = [_first_token(tokenizer, _turn_end(tokenizer)), tokenizer.eos_token_id]
    return list(dict.fromkeys(token_id for token_id in ids if token_id is not None))


def unknown_turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an assistant's message where it begins with no token; else empty."""
    end = _turn_end(tokenizer)
    return "" if _first_token(tokenizer, end) is not None else end


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template writes after an assistant's message; empty without a template that can be used."""
    try:
        return template_parts(tokenizer, date.today()).turn_end.strip()
    except ValueError:
        return ""


def _first_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The longest added token that `text` begins with."""
    found = [
        (len(token.content), token_id)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and text.startswith(token.content.strip())
    ]
    return max(found)[1] if found else None


def _message(question: str) -> str:
    return f"{question}\n{INSTRUCTION}"


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@lru_cache(maxsize=16)
def _control_tokens(tokenizer: PreTrainedTokenizerBase, parts: TemplateParts) -> tuple[dict[int, str], list[int]]:
    """The control tokens by their ids, and the ids that every prompt has, in order.

    Control tokens are special tokens, and added tokens that the chat template mentions; white space is text.
    """
    template = str(tokenizer.chat_template)
    control = {
        token_id: token.content
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and (token.special or token.content in template)
    }
    return control, [token for token in _encode(tokenizer, parts.render(INSTRUCTION)) if token in control]


def _encode_around(
    tokenizer: PreTrainedTokenizerBase, parts: TemplateParts, message: str, control_tokens: list[str]
) -> list[int]:
    """The prompt encoded in pieces that are cut inside each control token of the message."""
    first, *others = _cut(parts.shown(message), re.compile("|".join(map(re.escape, control_tokens))))
    token_ids: list[int] = []
    text = parts.around[0]
    for after in parts.around[1:]:
        pieces = [text + first, *others]
        for piece in pieces[:-1]:
            token_ids += _encode_behind(tokenizer, piece, is_start=not token_ids)
        text = pieces[-1] + after
    return token_ids + _encode_behind(tokenizer, text, is_start=not token_ids)


def _cut(text: str, control: re.Pattern[str]) -> list[str]:
    """`text` in pieces, cut behind the first character of every control token."""
    pieces = []
    while found := control.search(text):
        pieces.append(text[: found.start() + 1])
        text = text[found.start() + 1 :]
    return [*pieces, text]


def _encode_behind(tokenizer: PreTrainedTokenizerBase, text: str, *, is_start: bool) -> list[int]:
    """Token ids of `text` at the start of a prompt, or behind other text."""

    def encode(piece: str) -> list[int]:
        return _encode(tokenizer, piece)

    return encode(text) if is_start else next(continuations(encode, text), encode(text))
