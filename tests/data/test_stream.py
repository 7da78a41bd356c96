"""Which prompts a rollout decodes."""

from __future__ import annotations

import pytest

from relay_lightning.data.loader import TrainPosition
from relay_lightning.data.problems import drop_long_prompts
from relay_lightning.data.prompts import rollout_batch
from relay_lightning.data.stream import PromptLoader, PromptStream
from relay_lightning.types import Prompt

PROMPTS = [Prompt(prompt_id=index, token_ids=(index,)) for index in range(10)]


def ids(prompts: list[Prompt]) -> list[int]:
    return [prompt.prompt_id for prompt in prompts]


def test_a_pass_shows_every_prompt_once_and_the_next_pass_in_another_order() -> None:
    stream = PromptStream(PROMPTS, 5, seed=0)
    passes = [ids(stream.rollout_prompts(2 * index)) + ids(stream.rollout_prompts(2 * index + 1)) for index in range(3)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_a_rollout_is_the_same_whatever_was_asked_before() -> None:
    visited = PromptStream(PROMPTS, 4, seed=7)
    for index in range(20):
        visited.rollout_prompts(index)
    assert visited.rollout_prompts(3) == PromptStream(PROMPTS, 4, seed=7).rollout_prompts(3)
    assert visited.rollout_prompts(3) != PromptStream(PROMPTS, 4, seed=8).rollout_prompts(3)


def test_a_rollout_never_holds_a_prompt_twice_when_the_passes_do_not_divide() -> None:
    stream = PromptStream(PROMPTS, 4, seed=0)
    assert stream.num_rollouts_per_pass == 2
    assert all(len(set(ids(stream.rollout_prompts(index)))) == 4 for index in range(12))


def test_ranks_share_a_rollout_between_them() -> None:
    whole = PromptStream(PROMPTS, 6, seed=0)
    parts = [PromptStream(PROMPTS, 6, seed=0, rank=rank, world_size=3) for rank in range(3)]
    for index in range(4):
        shares = [ids(part.rollout_prompts(index)) for part in parts]
        assert all(len(share) == 2 for share in shares)
        assert sorted(prompt_id for share in shares for prompt_id in share) == sorted(ids(whole.rollout_prompts(index)))


def test_later_sampling_rounds_draw_other_prompts() -> None:
    stream = PromptStream(PROMPTS, 5, seed=0)
    assert stream.rollout_prompts(0, sampling_round=1) != stream.rollout_prompts(0)


@pytest.mark.parametrize(
    ("size", "world_size", "sentence"), [(11, 1, "there are 10"), (3, 2, "multiple"), (0, 1, "positive")]
)
def test_a_rollout_that_cannot_be_filled_is_refused(size: int, world_size: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        PromptStream(PROMPTS, size, seed=0, world_size=world_size)


def test_every_rollout_is_taken_as_often_as_it_has_micro_batches() -> None:
    stream = PromptStream(PROMPTS, 5, seed=0)
    batches = [rollout_batch(stream, 3, TrainPosition(epoch=1, batch_index=index)) for index in range(6)]
    assert [(batch.rollout_index, batch.micro_batch_index) for batch in batches] == [
        (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2),
    ]  # fmt: skip
    assert batches[4].draw_prompts() == stream.rollout_prompts(3)


def test_ranks_get_equally_many_evaluation_batches_and_no_prompt_twice() -> None:
    loaders = [PromptLoader(PROMPTS, 2, rank=rank, world_size=4) for rank in range(4)]
    assert {len(loader) for loader in loaders} == {2}
    seen = [prompt.prompt_id for loader in loaders for batch in loader for prompt in batch.prompts]
    assert sorted(seen) == list(range(10))


def test_long_prompts_are_counted_and_left_out_but_never_cut(caplog: pytest.LogCaptureFixture) -> None:
    prompts = [Prompt(0, (1, 2, 3)), Prompt(1, (1, 2, 3, 4))]
    assert drop_long_prompts(prompts, 3, source="data.jsonl") == [prompts[0]]
    assert "1 of 2 prompts of data.jsonl exceed 3 tokens" in caplog.text
    with pytest.raises(ValueError, match="All 2 prompts"):
        drop_long_prompts(prompts, 2, source="data.jsonl")
