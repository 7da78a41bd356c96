"""The relay as its definition reads: one row, no cache, everything recomputed at every token, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from fake_model import Script, scripted_bias
from transformers import PreTrainedModel

from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.types import FinishReason, TokenSource

_SPECIAL = b"\xff"


@dataclass
class NaiveResult:
    token_ids: list[int] = field(default_factory=list)
    token_source: list[TokenSource] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """(start, stop, n) of every span."""
    finish_reason: FinishReason | None = None


def naive_relay(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    protocol: CompiledProtocol,
    prompt: Sequence[int],
    *,
    budget: int,
    student_script: Script,
    teacher_script: Script,
    eos_policy: str = "finish",
    max_calls: int | None = None,
    max_call_tokens: int | None = None,
    spent_calls: str = "text",
    eos: int = 0,
    num_token_ids: int | None = None,
) -> NaiveResult:
    """Follows method section 1 word by word. num_token_ids: ids from there on are forbidden to both."""
    result = NaiveResult()
    shown = list(prompt)
    segment: list[int] = []

    def write(token: int, log_prob: float, source: TokenSource) -> None:
        result.token_ids.append(token)
        result.log_probs.append(log_prob)
        result.token_source.append(source)

    while len(result.token_ids) < budget:
        is_spent = max_calls is not None and len(result.spans) >= max_calls
        forbidden = _forbidden(protocol, segment, spent_calls) if is_spent else []
        token, log_prob = _next(student, [*prompt, *result.token_ids], student_script, forbidden, num_token_ids)
        write(token, log_prob, TokenSource.STUDENT)
        segment.append(token)
        if token == eos:
            result.finish_reason = FinishReason.STOP
            return result
        n = _called(protocol, segment)
        if n is None or is_spent:
            continue
        shown += protocol.strip_commands(segment, protocol.scan(segment))
        segment = []
        start = len(result.token_ids)
        stop = min(start + min(n, max_call_tokens or n), budget)
        ended = False
        while len(result.token_ids) < stop and not ended:
            token, log_prob = _next(teacher, shown, teacher_script, [], num_token_ids)
            ended = token == eos
            if not ended or eos_policy == "finish":
                write(token, log_prob, TokenSource.TEACHER)
                shown.append(token)
        if start < budget:
            result.spans.append((start, len(result.token_ids), n))
        if ended and eos_policy == "finish":
            result.finish_reason = FinishReason.TEACHER_STOP
            return result
    result.finish_reason = FinishReason.LENGTH
    return result


def _next(
    model: PreTrainedModel, context: list[int], script: Script, forbidden: list[int], num_token_ids: int | None
) -> tuple[int, float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context])).logits[0, -1]
    logits = logits + scripted_bias(script(tuple(context)), len(logits))
    log_probs = logits.log_softmax(-1)
    logits[forbidden] = -torch.inf
    if num_token_ids is not None:
        logits[num_token_ids:] = -torch.inf
    token = int(logits.argmax())
    return token, float(log_probs[token])


def _called(protocol: CompiledProtocol, segment: list[int]) -> int | None:
    """The n of the command that the last token of the segment completes."""
    matches = _matches(protocol, segment)
    return int(matches[-1][1]) if len(matches) > len(_matches(protocol, segment[:-1])) else None


def _forbidden(protocol: CompiledProtocol, segment: list[int], spent_calls: str) -> list[int]:
    """The tokens that would complete a command, or its opening tag, behind the segment."""
    every = range(protocol.vocab_size)
    completing = [token for token in every if _called(protocol, [*segment, token]) is not None]
    if spent_calls == "mask_open":
        tag, before = protocol.protocol.open_tag.encode(), _bytes(protocol, segment)
        opening = [token for token in every if _bytes(protocol, [*segment, token]).count(tag) > before.count(tag)]
        return [*completing, *opening]
    return completing if spent_calls == "mask_close" else []


def _matches(protocol: CompiledProtocol, segment: list[int]) -> list:
    return list(protocol.protocol.pattern.finditer(_bytes(protocol, segment)))


def _bytes(protocol: CompiledProtocol, segment: list[int]) -> bytes:
    return b"".join(_SPECIAL if (piece := protocol.token_bytes[token]) is None else piece for token in segment)
