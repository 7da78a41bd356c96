import itertools

import pytest
import torch
from torch import nn

from relay_lightning.tiny.training import Sample, Schedule, train


class Echo(nn.Module):
    """A model that knows only the token before: one table of logits."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> "Echo":
        assert not use_cache
        self.logits = self.table(input_ids)
        return self


def test_prompt_tokens_are_context_only():
    model = Echo(8)
    schedule = Schedule(num_steps=30, batch_size=2, peak_lr=0.3, num_warmup_steps=1, weight_decay=0.0)
    train(model, lambda count: [Sample([1, 2, 3], [4, 5])] * count, schedule, seed=0, label="echo")
    rows = model.table.weight.detach()
    assert rows[3].argmax() == 4  # the last prompt token predicts the completion's first
    assert rows[4].argmax() == 5
    # What follows a prompt token inside the prompt, and padding, is never a target.
    assert torch.equal(rows[[0, 1, 2, 5, 6, 7]], torch.zeros(6, 8))


def test_unlearnt_positions_are_context_only():
    model = Echo(8)
    schedule = Schedule(num_steps=30, batch_size=2, peak_lr=0.3, num_warmup_steps=1, weight_decay=0.0)
    train(model, lambda count: [Sample([1], [2, 3, 4], frozenset({1}))] * count, schedule, seed=0, label="echo")
    rows = model.table.weight.detach()
    assert rows[1].argmax() == 2
    assert torch.equal(rows[2], torch.zeros(8))
    assert rows[3].argmax() == 4


def test_padding_changes_no_gradient():
    def trained(samples: list[Sample]) -> torch.Tensor:
        model = Echo(8)
        train(model, lambda count: (samples * count)[:count], Schedule(4, len(samples), 0.1, 1), seed=0, label="echo")
        return model.table.weight.detach()

    short, long = Sample([1], [2]), Sample([1, 1, 1, 1, 1], [2])
    # A short row beside a long one is padded; its prompt is longer but both learn `1 -> 2` alone.
    assert torch.allclose(trained([short, long]), trained([short, short]))


def test_bf16_products_see_the_weights_of_their_own_step():
    """Autocast around the whole loop once trained on the first step's weights for ever."""

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(4, 4)
            self.head = nn.Linear(4, 4, bias=False)
            self.seen: list[torch.Tensor] = []

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> "Line":
            assert not use_cache
            self.logits = self.head(self.embed(input_ids))
            self.seen.append(self.head(torch.eye(4)).detach().float())
            return self

    torch.manual_seed(0)
    model = Line()
    schedule = Schedule(num_steps=4, batch_size=1, peak_lr=0.1, num_warmup_steps=1, has_bf16=True)
    train(model, lambda count: [Sample([1], [2])] * count, schedule, seed=0, label="line")
    assert all(not torch.equal(before, after) for before, after in itertools.pairwise(model.seen))


def test_learning_rate_rises_then_falls_to_zero():
    schedule = Schedule(num_steps=100, batch_size=1, peak_lr=1.0, num_warmup_steps=10)
    rates = [schedule.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
