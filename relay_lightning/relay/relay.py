"""A student and its teacher, ready to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.engine.turns import DECODING
from relay_lightning.relay.accounting import DecodeStats
from relay_lightning.relay.decoder import RelayDecoder
from relay_lightning.relay.policies import Policy
from relay_lightning.relay.relay_config import AUTO, CallLimit, RelayConfig
from relay_lightning.relay.rows import RelayRequest
from relay_lightning.types import Completion, Prompt

PromptMaker = Callable[[int, str | Sequence[int]], Prompt]
"""(prompt id, question or token ids) -> Prompt."""


class Relay:
    """Answers questions through a `RelayDecoder`; the one object that a user of a trained pair needs."""

    def __init__(self, decoder: RelayDecoder, make_prompt: PromptMaker, config: RelayConfig | None = None) -> None:
        """config: what `generate` does where its arguments do not say; the library's defaults if None."""
        self.decoder = decoder
        self.make_prompt = make_prompt
        self.config = config or RelayConfig()

    @property
    def stats(self) -> DecodeStats:
        """Counts and seconds of the last `generate`."""
        return self.decoder.stats

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingParams | None = None,
        *,
        teacher_sampling: SamplingParams | None = None,
        seed: int = 0,
        policy: str | Policy = "command",
        max_calls: CallLimit = AUTO,
        max_call_tokens: CallLimit = AUTO,
        eos_policy: Literal["finish", "return", "auto"] = AUTO,
    ) -> list[Completion]:
        """One completion per prompt, in their order.

        prompts: questions, which are put into the student's chat template, or token ids, which are taken as they are.
        Without `sampling`, and where a limit is "auto", the student's `relay_config.json` decides, if it has one; a
        limit of None is no limit. The other arguments, and what is raised, are those of `RelayDecoder.generate`.
        Prompt i has prompt id i. Calls of several threads take turns.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of questions or of token ids, not one string")
        with DECODING:  # Tokenizers, too, serve one thread at a time.
            requests = [RelayRequest(self.make_prompt(index, prompt)) for index, prompt in enumerate(prompts)]
            return self.decoder.generate(
                requests,
                sampling or self.config.sampling or SamplingParams(),
                teacher_sampling=teacher_sampling,
                seed=seed,
                policy=policy,
                **self.config.override(max_calls, max_call_tokens, eos_policy).limits,
            )
