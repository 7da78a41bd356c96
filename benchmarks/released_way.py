"""The rival of `bench_relay_decode`: the relay as it was released, imitated faithfully on this pair.

All rows in lock step; at each hand-over the ids are decoded to text, the commands are cut out of the text, the text is
tokenised again, and the other model starts from its beginning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

BOOST = 1e4
COMMAND = re.compile(r"<call>\s*([0-9]+)\s*</call>")


@dataclass
class Conversation:
    """One row: its prompt and completion as text."""

    prompt: str
    script: Tensor
    """[L] int64: the token that is forced at each position of the completion; -1 forces nothing."""
    completion: str = ""
    num_tokens: int = 0
    is_finished: bool = False
    num_calls: int = field(default=0)


class ReleasedRelay:
    """Generates with `transformers.generate` on both sides."""

    def __init__(
        self, student: PreTrainedModel, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos: int | None
    ) -> None:
        """eos: the end-of-sequence id, or None to let completions run to their budget."""
        self.student = student
        self.teacher = teacher
        self.tokenizer = tokenizer
        self.eos = eos
        self.close_tag = tokenizer.encode("</call>", add_special_tokens=False)
        tokenizer.padding_side = "left"

    @torch.inference_mode()
    def generate(self, rows: Sequence[Conversation], budget: int) -> None:
        """Completes all rows in place, greedily."""
        while live := [row for row in rows if not row.is_finished]:
            callers = self._student_turn(live, budget)
            if callers:
                self._teacher_turn(callers, budget)

    @torch.inference_mode()
    def student_alone(self, contexts: list[str], length: int) -> None:
        """Writes `length` tokens behind each context, without any call."""
        self._complete(self.student, contexts, min_new_tokens=length, max_new_tokens=length)

    def _student_turn(self, rows: list[Conversation], budget: int) -> list[Conversation]:
        """Lets all rows write until each has called or ended. Returns those that called, with what they asked for."""
        pieces = self._complete(
            self.student,
            [row.prompt + row.completion for row in rows],
            max_new_tokens=max(budget - row.num_tokens for row in rows),
            logits_processor=LogitsProcessorList([_Forced(rows, self.eos)]),
            stopping_criteria=StoppingCriteriaList([_Called(self.close_tag)]),
        )
        callers = []
        for row, piece in zip(rows, pieces, strict=True):
            self._append(row, piece[: budget - row.num_tokens])
            if row.completion.endswith("</call>") and row.num_tokens < budget:
                callers.append(row)
            else:
                row.is_finished = True
        return callers

    def _teacher_turn(self, rows: list[Conversation], budget: int) -> None:
        asked = [min(int(COMMAND.findall(row.completion)[-1]), budget - row.num_tokens) for row in rows]
        contexts = [row.prompt + COMMAND.sub("", row.completion) for row in rows]
        pieces = self._complete(self.teacher, contexts, max_new_tokens=max(asked))
        for row, piece, count in zip(rows, pieces, asked, strict=True):
            self._append(row, piece[:count])
            row.num_calls += 1
            row.is_finished = row.num_tokens >= budget or (self.eos is not None and self.eos in piece[:count])

    def _complete(self, model: PreTrainedModel, contexts: list[str], **kwargs: object) -> list[list[int]]:
        """New token ids of each context, from the text on."""
        inputs = self.tokenizer(contexts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        model.generation_config.eos_token_id = self.eos
        output = model.generate(**inputs, do_sample=False, pad_token_id=self.tokenizer.pad_token_id, **kwargs)
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [[token for token in row if token != self.tokenizer.pad_token_id] for row in new]

    def _append(self, row: Conversation, token_ids: list[int]) -> None:
        row.completion += self.tokenizer.decode(token_ids, skip_special_tokens=True)
        row.num_tokens += len(token_ids)


class _Forced(LogitsProcessor):
    """Makes each row write what its script says at its position in the completion."""

    def __init__(self, rows: Sequence[Conversation], eos: int | None) -> None:
        self.scripts = torch.stack([row.script for row in rows])  # [B, L]
        self.positions = torch.tensor([row.num_tokens for row in rows])
        self.eos = eos

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        column = self.positions.clamp(max=self.scripts.shape[1] - 1)
        forced = self.scripts.gather(1, column[:, None])[:, 0].to(scores.device)
        self.positions += 1
        return force(scores, forced)


class _Called(StoppingCriteria):
    """Stops a row once it has written the close tag."""

    def __init__(self, close_tag: list[int]) -> None:
        self.close_tag = torch.tensor(close_tag)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # noqa: ARG002
        return (input_ids[:, -len(self.close_tag) :] == self.close_tag.to(input_ids.device)).all(-1)


def force(logits: Tensor, forced: Tensor) -> Tensor:
    """logits [B, V], in place, with forced[i] far above all others in row i, where it is not negative."""
    boost = torch.where(forced < 0, 0.0, BOOST).to(logits.dtype)
    return logits.scatter_add_(1, forced.clamp(min=0)[:, None], boost[:, None])
