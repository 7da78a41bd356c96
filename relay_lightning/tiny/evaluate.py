"""Accuracy of one network of the embedded pair, by kind of problem."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from relay_lightning.tiny.task import PRICES, TinyProblem, stated_prices
from relay_lightning.tiny.tokenizer import END_OF_TURN, PADDING, chat_text

MAX_COMPLETION_TOKENS = 192
"""Room for the longest solution (143 tokens) and a few commands."""
_BOX = re.compile(r"\\boxed\{(\d+)\}")
_COMMAND = re.compile(r"<call>\s*[0-9]+\s*</call>")
_OPEN_LINE = re.compile(r"One (\w+) costs (\d?)$")

LogitsHook = Callable[[Tensor, Tensor], Tensor]
"""(token ids [B, T], scores [B, V]) -> scores [B, V]: a logits processor of `generate`."""


def generate_texts(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    problems: Sequence[TinyProblem],
    temperature: float,
    *,
    seed: int = 0,
    batch_size: int = 256,
    hooks: Callable[[Sequence[TinyProblem]], list[LogitsHook]] | None = None,
) -> list[list[int]]:
    """Completion token ids of every problem, the ending token left out, greedy at temperature 0."""
    torch.manual_seed(seed)
    completions: list[list[int]] = []
    for start in range(0, len(problems), batch_size):
        batch = problems[start : start + batch_size]
        completions += _generate_batch(model, tokenizer, batch, temperature, hooks(batch) if hooks else [])
    return completions


def accuracy_by_kind(problems: Sequence[TinyProblem], texts: Sequence[str]) -> dict[str, float]:
    """Share of right answers for each kind, and for `all`; the last box of a text counts."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for problem, text in zip(problems, texts, strict=True):
        boxes = _BOX.findall(text)
        is_correct = bool(boxes) and boxes[-1] == problem.answer
        outcomes[problem.kind].append(is_correct)
        outcomes["all"].append(is_correct)
    return {kind: sum(results) / len(results) for kind, results in sorted(outcomes.items())}


def commands_per_completion(texts: Sequence[str]) -> float:
    """Mean number of well-formed commands."""
    return sum(len(_COMMAND.findall(text)) for text in texts) / max(1, len(texts))


def oracle_hooks(tokenizer: Tokenizer) -> Callable[[Sequence[TinyProblem]], list[LogitsHook]]:
    """Hooks that write the two digits of every hidden price, and nothing else, in place of the network.

    What it then reaches is the upper bound of a relay that calls for exactly those digits.
    """
    digit_ids = {digit: tokenizer.token_to_id(digit) for digit in "0123456789"}

    def for_batch(problems: Sequence[TinyProblem]) -> list[LogitsHook]:
        stated = [stated_prices(problem.question) for problem in problems]

        def write_prices(token_ids: Tensor, scores: Tensor) -> Tensor:
            for row, ids in enumerate(token_ids.tolist()):
                match = _OPEN_LINE.search(tokenizer.decode(ids[-6:]))
                if match and match[1] in PRICES and match[1] not in stated[row]:
                    digit = str(PRICES[match[1]])[len(match[2])]
                    scores[row] = float("-inf")
                    scores[row, digit_ids[digit]] = 0.0
            return scores

        return [write_prices]

    return for_batch


@torch.inference_mode()
def _generate_batch(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    problems: Sequence[TinyProblem],
    temperature: float,
    hooks: list[LogitsHook],
) -> list[list[int]]:
    """One left-padded batch through the model's own `generate`."""
    end_id, padding_id = tokenizer.token_to_id(END_OF_TURN), tokenizer.token_to_id(PADDING)
    prompts = [encoding.ids for encoding in tokenizer.encode_batch([chat_text(p.question) for p in problems])]
    num_prompt_tokens = max(len(ids) for ids in prompts)
    token_ids = torch.tensor([[padding_id] * (num_prompt_tokens - len(ids)) + ids for ids in prompts])
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    generated = model.generate(
        input_ids=token_ids,
        attention_mask=(token_ids != padding_id).long(),
        max_new_tokens=MAX_COMPLETION_TOKENS,
        eos_token_id=end_id,
        pad_token_id=padding_id,
        logits_processor=hooks,
        **sampling,
    )
    rows = generated[:, num_prompt_tokens:].tolist()
    return [ids[: ids.index(end_id)] if end_id in ids else ids for ids in rows]
