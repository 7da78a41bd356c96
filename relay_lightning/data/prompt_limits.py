"""PromptLimit: how long a prompt may be. Longer prompts are left out, never cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from relay_lightning.data.notices import notify
from relay_lightning.data.source import DataSource
from relay_lightning.models.architecture import max_context
from relay_lightning.types import Prompt


@dataclass(frozen=True, slots=True)
class PromptLimit:
    """The most tokens of a prompt that somebody takes."""

    max_tokens: int
    reason: str
    """Continues the log message about prompts that are longer."""
    encode: Callable[[Prompt], Sequence[int]] | None = None
    """The prompt in the reader's vocabulary, where that is not the student's."""

    def allows(self, prompt: Prompt) -> bool:
        """True if the prompt is short enough."""
        return self._count(prompt) <= self.max_tokens

    def require(self, prompt: Prompt) -> None:
        """Raises ValueError if the prompt is too long."""
        if not self.allows(prompt):
            raise ValueError(f"The question has {self._count(prompt)} tokens, which {self.reason}.")

    def _count(self, prompt: Prompt) -> int:
        return len(prompt.token_ids if self.encode is None else self.encode(prompt))


def context_limit(
    name: str, config: PreTrainedConfig, encode: Callable[[Prompt], Sequence[int]] | None = None
) -> PromptLimit:
    """The prompt and one token more have to fit the context of the model with this config. name: student or teacher."""
    num_tokens = max_context(config.get_text_config())
    return PromptLimit(num_tokens - 1, f"leave no room in the {name}'s context of {num_tokens} tokens", encode)


def drop_long_prompts(
    prompts: Sequence[Prompt],
    max_prompt_tokens: int | None,
    contexts: Sequence[PromptLimit] = (),
    *,
    source: str | DataSource,
) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens (None: any length) that fit the contexts.

    Says how many of `source` are left out and why. Raises ValueError if none is left.
    """
    kept = list(prompts)
    if max_prompt_tokens is not None:
        setting = PromptLimit(max_prompt_tokens, f"exceed {max_prompt_tokens} tokens")
        kept = _drop(kept, setting, source, f"exceed max_prompt_tokens={max_prompt_tokens}")
    for context in contexts:
        kept = _drop(kept, context, source, context.reason)
    return kept


def _drop(prompts: Sequence[Prompt], limit: PromptLimit, source: str | DataSource, reason_for_all: str) -> list[Prompt]:
    kept = [prompt for prompt in prompts if limit.allows(prompt)]
    if not kept:
        raise ValueError(f"All {len(prompts)} prompts of {source} {reason_for_all}.")
    if num_dropped := len(prompts) - len(kept):
        notify(f"{num_dropped} of {len(prompts)} prompts of {source} {limit.reason} and are left out.")
    return kept
