"""A student and its teacher, ready to answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.engine.turns import DECODING
from relay_lightning.relay.accounting import DecodeStats
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.policies import Policy, make_policy
from relay_lightning.relay.relay_config import AUTO, CallLimit, RelayConfig
from relay_lightning.relay.requests import CallLimits, RelayRequest, RequestOutput
from relay_lightning.relay.text_stream import Piece, TextStream
from relay_lightning.types import Completion, Prompt

PromptMaker = Callable[[int, str | Sequence[int]], Prompt]
"""(prompt id, question or token ids) -> Prompt."""


class Relay:
    """Answers questions through a `RelayEngine`; the one object that a user of a trained pair needs."""

    def __init__(self, engine: RelayEngine, make_prompt: PromptMaker, config: RelayConfig | None = None) -> None:
        """config: what `generate` does where its arguments do not say; the library's defaults if None."""
        self.engine = engine
        self.make_prompt = make_prompt
        self.config = config or RelayConfig()
        self._outputs: dict[int, list[RequestOutput]] = {}
        """What streams have not read yet, by request id."""

    @property
    def stats(self) -> DecodeStats:
        """Counts and seconds of the last `generate`."""
        return self.engine.stats

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
        spent_calls: Literal["text", "mask_close", "mask_open", "auto"] = AUTO,
    ) -> list[Completion]:
        """Returns one completion per prompt, in their order.

        prompts: questions, which are put into the student's chat template, or token ids, which are taken as they are.
        Without `sampling`, and where a limit is "auto", the student's `relay_config.json` decides, if it has one; a
        limit of None is no limit. The other arguments are those of `RelayRequest`, and `RelayEngine.generate` says what
        is raised. Prompt i has prompt id i. Calls of several threads take turns.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list of questions or of token ids, not one string")
        limits = self.config.override(max_calls, max_call_tokens, eos_policy, spent_calls).limits
        with DECODING:  # Tokenizers, too, serve one thread at a time.
            requests = [
                self._request(index, prompt, sampling, teacher_sampling, seed, policy, limits)
                for index, prompt in enumerate(prompts)
            ]
            return self.engine.generate(requests)

    def stream(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        teacher_sampling: SamplingParams | None = None,
        seed: int = 0,
        policy: str | Policy = "command",
        max_calls: CallLimit = AUTO,
        max_call_tokens: CallLimit = AUTO,
        eos_policy: Literal["finish", "return", "auto"] = AUTO,
        spent_calls: Literal["text", "mask_close", "mask_open", "auto"] = AUTO,
    ) -> Iterator[Piece]:
        """Yields the text of one completion in pieces, as it is written, each with its author.

        The arguments are those of `generate`; the pieces of a prompt join to the text that `generate` gives it as its
        only prompt. A piece without text announces each span of the teacher. The last piece holds the completion. A
        stream that is not read to its end aborts its request.
        """
        limits = self.config.override(max_calls, max_call_tokens, eos_policy, spent_calls).limits
        request = self._request(0, prompt, sampling, teacher_sampling, seed, policy, limits)
        max_calls = request.limits.max_calls if make_policy(policy).allows_commands else 0
        text = TextStream(self.engine.protocol, request.sampling.stop, max_calls)
        request_id = self.engine.add_request(request)
        self._outputs[request_id] = []
        try:
            while True:
                for output in self._step(request_id):
                    yield from text.feed(output)
                    if output.is_finished:
                        return
        finally:
            del self._outputs[request_id]
            self.engine.abort(request_id)

    def _request(
        self,
        prompt_id: int,
        prompt: str | Sequence[int],
        sampling: SamplingParams | None,
        teacher_sampling: SamplingParams | None,
        seed: int,
        policy: str | Policy,
        limits: CallLimits,
    ) -> RelayRequest:
        """Returns the request for one prompt, with the student's own sampling where none is given."""
        return RelayRequest(
            self.make_prompt(prompt_id, prompt),
            sampling or self.config.sampling or SamplingParams(),
            teacher_sampling=teacher_sampling,
            policy=policy,
            limits=limits,
            seed=seed,
        )

    def _step(self, request_id: int) -> list[RequestOutput]:
        """Returns what is new of a stream's request, after a step of the engine if another stream has not run it."""
        with DECODING:
            if not self._outputs[request_id]:
                for output in self.engine.step():
                    self._outputs.get(output.request_id, []).append(output)
            outputs, self._outputs[request_id] = self._outputs[request_id], []
            return outputs
