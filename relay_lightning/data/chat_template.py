"""From a question to the prompt that both models read: one user message, no system prompt, no thinking."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from relay_lightning.types import Prompt

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""Follows the question after a line end (paper, appendix)."""


def render_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The chat-templated text up to where the assistant begins.

    Raises ValueError when the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError(f"The tokenizer {tokenizer.name_or_path!r} has no chat template.")
    message = {"role": "user", "content": f"{question}\n{INSTRUCTION}"}
    return str(
        tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True, enable_thinking=False)
    )


def make_prompt(tokenizer: PreTrainedTokenizerBase, prompt_id: int, question: str, answer: str | None = None) -> Prompt:
    """The prompt in the vocabulary of `tokenizer`, its student's. Raises as `render_prompt` does."""
    text = render_prompt(tokenizer, question)
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(prompt_id, tuple(token_ids), text, question, answer)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """The prompt in the vocabulary and chat template of another `tokenizer`, its teacher's.

    A prompt that was given as tokens has no question: its text is encoded as it stands.
    """
    if prompt.question:
        return list(make_prompt(tokenizer, prompt.prompt_id, prompt.question).token_ids)
    return list(tokenizer(prompt.text, add_special_tokens=False)["input_ids"])
