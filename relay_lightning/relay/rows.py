"""The host's view of the completions in flight: what each model has been shown, and the spans so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from relay_kernels.relay_step import RowStatus, Writer

from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.side import Reading
from relay_lightning.types import Completion, FinishReason, Prompt, RelaySpan, TokenSource

SPAN_FINISH = {
    RowStatus.DELIVERED: FinishReason.DELIVERED,
    RowStatus.TEACHER_ENDED: FinishReason.TEACHER_STOP,
    RowStatus.TEACHER_STOP: FinishReason.TEACHER_STOP,
    RowStatus.LENGTH: FinishReason.LENGTH,
}
COMPLETION_FINISH = {
    RowStatus.STOP: FinishReason.STOP,
    RowStatus.TEACHER_STOP: FinishReason.TEACHER_STOP,
    RowStatus.LENGTH: FinishReason.LENGTH,
}
FINISHED = frozenset(COMPLETION_FINISH)


@dataclass(frozen=True, slots=True)
class RelayRequest:
    """One completion to be written."""

    prompt: Prompt
    sample_index: int = 0
    """Which of the prompt's samples this is: keys the random numbers."""


@dataclass(slots=True)
class OpenCall:
    """A call that the teacher is answering."""

    start: int
    """Completion length when the teacher took over."""
    command_start: int
    num_requested_tokens: int
    span_limit: int
    """Completion length at which the teacher stops."""
    is_cut: bool = False
    """The span was shortened to the budget as the student reads it."""


@dataclass(slots=True, eq=False)
class Row:
    """One completion in flight, bound to its slot in both caches for its whole life."""

    order: int
    """Position among the requests."""
    request: RelayRequest
    slot: int
    token_limit: int
    """Completion tokens at most: the budget, or the room in a model's context."""
    teacher_context: list[int]
    """What the teacher reads and wrote, in its own tokens; at first its prompt."""
    num_teacher_prompt_tokens: int
    is_all_teacher: bool
    """The policy gave the whole completion to the teacher."""
    tokens: list[int] = field(default_factory=list)
    """Completion tokens up to the last hand-over."""
    spans: list[RelaySpan] = field(default_factory=list)
    call: OpenCall | None = None
    finish_reason: FinishReason | None = None
    num_malformed_calls: int = 0
    num_cached: dict[Writer, int] = field(default_factory=lambda: dict.fromkeys(Writer, 0))
    """Leading tokens of its context that each side's slot holds."""

    @property
    def next_call_floor(self) -> int:
        """Completion length from which a policy may hand over: after an empty span the student has to write first."""
        return len(self.tokens) + bool(self.spans and self.spans[-1].num_tokens == 0)

    def student_reading(self) -> Reading:
        """What the student has to read before it goes on."""
        prompt = self.request.prompt.token_ids
        return Reading(self.slot, [*prompt, *self.tokens], self.num_cached[Writer.STUDENT], len(prompt))

    def teacher_reading(self) -> Reading:
        """What the teacher has to read before it goes on."""
        num_cached = self.num_cached[Writer.TEACHER]
        return Reading(self.slot, self.teacher_context, num_cached, self.num_teacher_prompt_tokens)

    def open_call(
        self, new_tokens: list[int], requested: int | None, protocol: CompiledProtocol, bridge: TextBridge | None
    ) -> None:
        """Takes in the student's segment, which ends in a command, or where a policy asked for `requested` tokens
        instead.

        The teacher's context grows by the segment without the command, over the bridge if there is one.
        """
        start = len(self.tokens) + len(new_tokens)
        commands = protocol.scan(new_tokens)
        if requested is None:
            self.call = OpenCall(start, len(self.tokens) + commands[-1].start, commands[-1].n, start)
        else:
            self.call = OpenCall(start, start, requested, start)
        self.num_malformed_calls += protocol.count_malformed(new_tokens)
        shown = protocol.strip_commands(new_tokens, commands)
        self.teacher_context += bridge.to_teacher(shown) if bridge else shown
        self.tokens += new_tokens

    def begin_span(self, teacher_capacity: int, max_call_tokens: int | None) -> None:
        """Sets where the span ends: n, or less where the call, the budget or the teacher's context has less room."""
        assert self.call is not None
        num_tokens = self.call.num_requested_tokens
        if max_call_tokens is not None and not self.is_all_teacher:
            num_tokens = min(num_tokens, max_call_tokens)
        room = teacher_capacity - len(self.teacher_context)
        if room < num_tokens:
            # The teacher's context ends the completion, as the student's would.
            self.token_limit = min(self.token_limit, self.call.start + room)
        self.call.span_limit = min(self.call.start + num_tokens, self.token_limit)

    def close_call(self, new_tokens: list[int], status: RowStatus) -> None:
        """Takes in the teacher's tokens, as the student reads them, as a span that ended with `status`."""
        call = self.call
        assert call is not None
        self.tokens += new_tokens
        finish_reason = SPAN_FINISH[status]
        is_whole = len(new_tokens) >= call.num_requested_tokens and not call.is_cut
        if is_whole and status == RowStatus.LENGTH:
            finish_reason = FinishReason.DELIVERED
        span = RelaySpan(call.start, len(self.tokens), call.num_requested_tokens, finish_reason, call.command_start)
        self.spans.append(span)
        self.call = None

    def finish(self, new_tokens: list[int], status: RowStatus, protocol: CompiledProtocol) -> None:
        """Takes in the last tokens, of whoever wrote them."""
        if self.call is not None and self.call.span_limit > self.call.start:
            self.close_call(new_tokens, status)
        else:
            self.tokens += new_tokens
            self.num_malformed_calls += protocol.count_malformed(new_tokens)
        self.finish_reason = COMPLETION_FINISH[status]

    def completion(
        self, log_probs: list[float], sampling_log_probs: list[float], protocol: CompiledProtocol
    ) -> Completion:
        """The finished completion."""
        assert self.finish_reason is not None
        source = [TokenSource.STUDENT] * len(self.tokens)
        for span in self.spans:
            source[span.start : span.stop] = [TokenSource.TEACHER] * span.num_tokens
        return Completion(
            prompt_id=self.request.prompt.prompt_id,
            sample_index=self.request.sample_index,
            token_ids=self.tokens,
            token_source=source,
            log_probs=log_probs,
            sampling_log_probs=sampling_log_probs,
            spans=self.spans,
            finish_reason=self.finish_reason,
            num_malformed_calls=self.num_malformed_calls,
            text=protocol.vocabulary.text_of(self.tokens),
        )
