"""Sequence: one completion in flight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from relay_kernels.relay_step import CommandRule, RowStatus

from relay_lightning.engine.context import Context
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.policies import Policy
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.relay.requests import COMMAND_RULES, RelayRequest, RequestOutput
from relay_lightning.relay.stop_strings import StopMatcher
from relay_lightning.relay.teacher import TeacherSpan
from relay_lightning.types import Completion, FinishReason, RelaySpan, TokenSource

COMPLETION_FINISH = {
    RowStatus.STOP: FinishReason.STOP,
    RowStatus.LENGTH: FinishReason.LENGTH,
}


class SequenceStatus(Enum):
    """Who a sequence waits for."""

    QUEUED = auto()
    """No row is free for it."""
    STUDENT = auto()
    TEACHER = auto()
    FINISHED = auto()


@dataclass(slots=True)
class OpenCall:
    """A call that the teacher is answering. Positions are completion tokens as the student reads them."""

    start: int
    """Completion length when the teacher took over."""
    command_start: int
    num_requested_tokens: int


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens are appended in place to the student's context, by the engine and its runner."""

    request_id: int
    request: RelayRequest
    policy: Policy
    token_limit: int
    """Completion tokens at most: the budget, or the room in a model's context."""
    context: Context
    """What the student reads and writes."""
    unread: list[int]
    """What the teacher has not been shown yet, in its own vocabulary; at first its prompt."""
    teacher_context: int
    """Tokens that the teacher's context can have at most."""
    is_all_teacher: bool
    """The policy gave the whole completion to the teacher."""
    stop: StopMatcher | None
    num_teacher_context: int = 0
    """Tokens that the teacher has been shown or has written."""
    status: SequenceStatus = SequenceStatus.QUEUED
    segment_start: int = 0
    """Completion length when the student last took over."""
    is_new_segment: bool = True
    """The student has not begun to write since then."""
    spans: list[RelaySpan] = field(default_factory=list)
    call: OpenCall | None = None
    num_malformed_calls: int = 0
    num_watched: int = 0
    """Completion tokens in which stop strings have been looked for."""
    num_reported: int = 0
    """Completion tokens that outputs have told of."""
    num_reported_spans: int = 0

    @property
    def num_tokens(self) -> int:
        """Completion tokens that are on the host."""
        return len(self.context.token_ids) - self.num_prompt_tokens

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt.token_ids)

    @property
    def has_calls_left(self) -> bool:
        max_calls = self.request.limits.max_calls
        return max_calls is None or len(self.spans) < max_calls

    @property
    def command_rule(self) -> CommandRule:
        """What a command of the student does."""
        if self.policy.allows_commands and self.has_calls_left:
            return CommandRule.CALL
        return COMMAND_RULES[self.request.limits.spent_calls]

    @property
    def next_call_floor(self) -> int:
        """Completion length from which a policy may hand over: after an empty span the student has to write first."""
        return self.num_tokens + bool(self.spans and self.spans[-1].num_tokens == 0)

    def tokens_from(self, start: int) -> list[int]:
        """Returns the completion's tokens from position `start` on."""
        return self.context.token_ids[self.num_prompt_tokens + start :]

    def open_call(self, requested: int | None, protocol: CompiledProtocol, bridge: TextBridge | None) -> None:
        """Ends the student's segment at a command, or where a policy asked for `requested` tokens instead.

        The teacher is to be shown the segment without the command, over the bridge if there is one.
        """
        segment = self.tokens_from(self.segment_start)
        start = self.num_tokens
        commands = protocol.scan(segment)
        if requested is None:
            self.call = OpenCall(start, self.segment_start + commands[-1].start, commands[-1].n)
        else:
            self.call = OpenCall(start, start, requested)
        self.num_malformed_calls += protocol.count_malformed(segment)
        shown = protocol.strip_commands(segment, commands)
        self.unread += bridge.to_teacher(shown) if bridge else shown
        self.segment_start = start

    def span_budget(self) -> int:
        """Returns how many tokens the teacher may write: n, or less where call, budget or its context have less room.

        A full context ends the completion, as the student's own would.
        """
        assert self.call is not None
        count = self.call.num_requested_tokens
        max_call_tokens = self.request.limits.max_call_tokens
        if max_call_tokens is not None and not self.is_all_teacher:
            count = min(count, max_call_tokens)
        room = self.teacher_context - self.num_teacher_context - len(self.unread)
        if room < count:
            self.token_limit = min(self.token_limit, self.call.start + max(room, 0))
        return min(count, self.token_limit - self.call.start)

    @property
    def ends_with_teacher(self) -> bool:
        """True if the teacher's end-of-sequence token ends the completion."""
        return self.is_all_teacher or self.request.limits.eos_policy == "finish"

    def take_span(self, span: TeacherSpan, bridge: TextBridge | None, eos_token_ids: list[int]) -> FinishReason | None:
        """Appends the teacher's tokens, as the student reads them; returns why the completion ends with them, or None.

        Over a bridge the span may be of another length. The budget holds for the span as the teacher wrote it and as
        the student reads it; a finishing end of sequence becomes the student's own, one of `eos_token_ids`.
        """
        call, context = self.call, self.context
        assert call is not None
        ends = span.finish_reason == FinishReason.TEACHER_STOP and self.ends_with_teacher
        self.num_teacher_context += len(span.token_ids)
        tokens, log_probs, sampling_log_probs = span.token_ids, span.log_probs, span.sampling_log_probs
        if bridge is not None:
            tokens = bridge.to_student(tokens) + (eos_token_ids[:1] if ends else [])
            log_probs = sampling_log_probs = [math.nan] * len(tokens)
        room = self.token_limit - call.start
        is_cut = len(tokens) > room
        is_full = is_cut or (len(tokens) == room and not ends)
        reason = span.finish_reason
        if is_full and reason != FinishReason.TEACHER_ERROR:
            is_whole = len(tokens) >= call.num_requested_tokens and not is_cut
            reason = FinishReason.DELIVERED if is_whole else FinishReason.LENGTH
        context.token_ids += tokens[:room]
        context.log_probs += log_probs[:room]
        context.sampling_log_probs += sampling_log_probs[:room]
        context.position = context.num_written = self.num_tokens
        self.spans.append(RelaySpan(call.start, self.num_tokens, call.num_requested_tokens, reason, call.command_start))
        self.call = None
        self.segment_start, self.is_new_segment = self.num_tokens, True
        if is_full:
            return FinishReason.LENGTH
        return FinishReason.TEACHER_STOP if ends else None

    def find_stop(self, protocol: CompiledProtocol) -> bool:
        """Returns True if a stop string is complete; the completion then ends with the token that completes it."""
        if self.stop is None:
            return False
        seen, self.num_watched = self.num_watched, self.num_tokens
        index = self.stop.feed(protocol.token_bytes[token] for token in self.tokens_from(seen))
        if index is not None:
            self._cut(seen + index + 1)
        return index is not None

    def _cut(self, num_tokens: int) -> None:
        """Drops the completion's tokens behind the first `num_tokens`."""
        context = self.context
        del context.token_ids[self.num_prompt_tokens + num_tokens :]
        del context.log_probs[num_tokens:], context.sampling_log_probs[num_tokens:]
        context.position = context.num_written = num_tokens
        self.segment_start = min(self.segment_start, num_tokens)
        if self.spans and self.spans[-1].stop > num_tokens:
            self.spans[-1] = replace(self.spans[-1], stop=num_tokens)

    def sources_from(self, start: int) -> list[TokenSource]:
        """Returns who wrote each token from position `start` on."""
        source = [TokenSource.STUDENT] * (self.num_tokens - start)
        for span in reversed(self.spans):
            if span.stop <= start:
                break
            first = max(span.start, start)
            source[first - start : span.stop - start] = [TokenSource.TEACHER] * (span.stop - first)
        return source

    def report(self, completion: Completion | None) -> RequestOutput:
        """Returns what no output has told of yet."""
        start, self.num_reported = self.num_reported, self.num_tokens
        first_span, self.num_reported_spans = self.num_reported_spans, len(self.spans)
        return RequestOutput(
            self.request_id,
            self.tokens_from(start),
            self.sources_from(start),
            self.context.log_probs[start:],
            self.spans[first_span:],
            completion,
        )

    def complete(self, reason: FinishReason, protocol: CompiledProtocol) -> Completion:
        """Ends the sequence and returns its completion."""
        self.status = SequenceStatus.FINISHED
        self.num_malformed_calls += protocol.count_malformed(self.tokens_from(self.segment_start))
        token_ids = self.tokens_from(0)
        text = protocol.vocabulary.text_of(token_ids)
        return Completion(
            prompt_id=self.request.prompt.prompt_id,
            sample_index=self.request.sample_index,
            token_ids=token_ids,
            token_source=self.sources_from(0),
            log_probs=self.context.log_probs,
            sampling_log_probs=self.context.sampling_log_probs,
            spans=self.spans,
            finish_reason=reason,
            num_malformed_calls=self.num_malformed_calls,
            text=text if self.stop is None else self.stop.cut(text),
        )
