"""Supervised batches of self-sampled completions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from relay_lightning.data.loader import TrainPosition
from relay_lightning.data.sft import CommandSettings, SelfSample, SFTBatch, SFTStream, stack_rows

EOS = 99
COMMAND = 1000
SAMPLES = [SelfSample((1, 2), tuple(range(10, 10 + length)), EOS) for length in (1, 2, 3, 4, 5, 6, 7)]


def make_stream(commands: CommandSettings = CommandSettings(3, 1, 0.25), **options: Any) -> SFTStream:  # noqa: B008
    settings = {"batch_size": 4, "micro_batches_per_step": 1, "seed": 0}
    return SFTStream(SAMPLES, lambda n: [COMMAND + n], commands, **(settings | options))


def completions(batch: SFTBatch) -> list[list[int]]:
    """The trained tokens of every row."""
    return [ids[mask].tolist() for ids, mask in zip(batch.token_ids, batch.loss_mask, strict=True)]


def test_the_prompt_is_masked_and_padding_stands_on_the_right() -> None:
    token_ids, loss_mask = stack_rows([((1, 2), (3,)), ((1,), (4, 5, 6))])
    assert token_ids.tolist() == [[1, 2, 3, 0], [1, 4, 5, 6]]
    assert loss_mask.int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]


def test_commands_and_the_end_are_trained_and_the_rest_is_the_students_own_text() -> None:
    batch = make_stream().batch(TrainPosition(0, 0))
    rows = completions(batch)
    for row in rows:
        own = [token for token in row if token < COMMAND and token != EOS]
        assert own == list(range(10, 10 + len(own)))
        assert row[-1] == EOS
    assert any(token >= COMMAND for row in rows for token in row)
    assert batch.num_step_loss_tokens == sum(map(len, rows)) == batch.loss_mask.sum()


def test_a_completion_that_ran_out_of_tokens_gets_no_end() -> None:
    cut = SelfSample((1,), (7, 8), None)
    stream = SFTStream([cut], lambda n: [n], CommandSettings(3, 1, 1.0), batch_size=1, micro_batches_per_step=1, seed=0)
    assert completions(stream.batch(TrainPosition(0, 0))) == [[7, 8]]


def test_a_batch_is_a_function_of_its_position() -> None:
    visited = make_stream()
    for epoch in range(3):
        visited.batch(TrainPosition(epoch, 0))
    first, again = visited.batch(TrainPosition(0, 0)), make_stream().batch(TrainPosition(0, 0))
    assert torch.equal(first.token_ids, again.token_ids)
    assert completions(visited.batch(TrainPosition(1, 0))) != completions(first)


@pytest.mark.parametrize(("micro_batches_per_step", "world_size"), [(2, 1), (1, 2), (2, 2)])
def test_parts_of_a_step_make_up_the_whole_step(micro_batches_per_step: int, world_size: int) -> None:
    whole = make_stream().batch(TrainPosition(0, 0))
    parts = [
        make_stream(micro_batches_per_step=micro_batches_per_step, rank=rank, world_size=world_size).batch(
            TrainPosition(0, index)
        )
        for index in range(micro_batches_per_step)
        for rank in range(world_size)
    ]
    assert sorted(row for part in parts for row in completions(part)) == sorted(completions(whole))
    assert {part.num_step_loss_tokens for part in parts} == {whole.num_step_loss_tokens}


def test_samples_that_do_not_fill_a_step_are_left_out_of_a_pass() -> None:
    assert make_stream().num_batches_per_pass == 1
    assert make_stream(batch_size=2, micro_batches_per_step=2).num_batches_per_pass == 6


@pytest.mark.parametrize(
    ("options", "sentence"), [({"batch_size": 8}, "there are 7"), ({"batch_size": 3, "world_size": 2}, "2 processes")]
)
def test_a_batch_size_that_cannot_work_is_refused(options: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_stream(**options)


def test_rows_end_where_the_students_context_does_when_commands_make_them_longer():
    sample = SelfSample((7, 8), tuple(range(10, 30)), 1)
    whole, cut = (
        SFTStream(
            [sample], lambda n: [100 + n], CommandSettings(3, 1, 0.0), batch_size=1, micro_batches_per_step=1, seed=0,
            max_tokens=max_tokens,
        ).batch(TrainPosition(0, 0))
        for max_tokens in (None, 21)
    )  # fmt: skip
    assert whole.token_ids.shape[1] > 23
    assert cut.token_ids.tolist() == whole.token_ids[:, :21].tolist()
    assert cut.num_step_loss_tokens == 19
