"""From rollouts to training tensors."""

from __future__ import annotations

import io

import pytest
import torch

from relay_lightning.data.collate import make_train_batches, train_batches_from_plain, train_batches_to_plain
from relay_lightning.types import (
    Completion,
    FinishReason,
    Prompt,
    RewardCase,
    Rollout,
    RolloutGroup,
    TokenSource,
    TrainBatch,
)

STUDENT, TEACHER = TokenSource.STUDENT, TokenSource.TEACHER


def rollout(
    token_ids: list[int],
    sources: list[TokenSource] | None = None,
    finish_reason: FinishReason = FinishReason.STOP,
    advantage: float = 0.5,
) -> Rollout:
    completion = Completion(
        prompt_id=0,
        sample_index=0,
        token_ids=token_ids,
        token_source=sources or [STUDENT] * len(token_ids),
        log_probs=[-0.1 * (index + 1) for index in range(len(token_ids))],
        sampling_log_probs=[0.0] * len(token_ids),
        spans=[],
        finish_reason=finish_reason,
    )
    return Rollout(completion, is_correct=True, reward=1.0, advantage=advantage)


def group(prompt_token_ids: tuple[int, ...], rollouts: list[Rollout]) -> RolloutGroup:
    return RolloutGroup(Prompt(0, prompt_token_ids), rollouts, RewardCase.STUDENT_SOLVABLE)


MIXED = group((9, 8), [rollout([5, 6, 7], [STUDENT, TEACHER, STUDENT], advantage=2.0), rollout([4], advantage=-2.0)])


def test_fields_stand_where_their_tokens_stand() -> None:
    (batch,) = make_train_batches([MIXED])
    # Rows are sorted by length: the one-token completion comes first.
    assert batch.token_ids.tolist() == [[9, 8, 4, 0, 0], [9, 8, 5, 6, 7]]
    assert batch.attention_mask.sum(1).tolist() == [3, 5]
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 1]]
    assert batch.token_source.tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 2, 1]]
    assert batch.advantages.tolist() == [-2.0, 2.0]
    expected = torch.tensor([[0, 0, -0.1, 0, 0], [0, 0, -0.1, 0, -0.3]])
    torch.testing.assert_close(batch.rollout_log_probs, expected)
    assert batch.num_step_loss_tokens.item() == 3
    assert batch.num_step_rollouts.item() == 2
    assert batch.token_ids.dtype == torch.int64
    assert batch.token_source.dtype == torch.uint8


@pytest.mark.parametrize("teacher_tokens", ["on_policy", "luffy"])
def test_teacher_tokens_are_trained_when_asked_for(teacher_tokens: str) -> None:
    (batch,) = make_train_batches([MIXED], teacher_tokens=teacher_tokens)
    assert batch.loss_mask.int().tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1]]
    assert batch.rollout_log_probs[1, 3] == 0.0


def test_padding_is_never_inferred_from_token_ids() -> None:
    zeros = group((0, 0), [rollout([0, 0, 0]), rollout([0])])
    (batch,) = make_train_batches([zeros])
    assert batch.attention_mask.sum().item() == 8
    assert batch.loss_mask.sum().item() == 4


def test_truncated_completions_are_masked_only_when_asked_for() -> None:
    cut = group((1,), [rollout([2, 3], finish_reason=FinishReason.LENGTH), rollout([4, 5])])
    (kept,) = make_train_batches([cut])
    (masked,) = make_train_batches([cut], mask_truncated_completions=True)
    assert kept.num_step_loss_tokens.item() == 4
    assert masked.num_step_loss_tokens.item() == 2
    assert masked.loss_mask.sum(1).tolist() == [0, 2]
    assert masked.num_step_rollouts.item() == 2


def test_a_completion_that_the_teacher_broke_off_is_not_trained_on() -> None:
    broken = group((1,), [rollout([2, 3], finish_reason=FinishReason.TEACHER_ERROR), rollout([4, 5])])
    (batch,) = make_train_batches([broken])
    assert batch.loss_mask.sum(1).tolist() == [0, 2]


def test_steps_take_rollouts_in_order_and_share_their_counts() -> None:
    groups = [group((1,), [rollout([token] * length) for length in (3, 1, 2, 4)]) for token in (10, 20)]
    batches = make_train_batches(groups, num_steps=2, micro_batches_per_step=2)
    assert len(batches) == 4
    assert [set(batch.token_ids[:, 1].tolist()) for batch in batches] == [{10}, {10}, {20}, {20}]
    assert [batch.token_ids.shape[1] for batch in batches] == [3, 5, 3, 5]
    assert all(batch.num_step_loss_tokens.item() == 10 and batch.num_step_rollouts.item() == 4 for batch in batches)


def test_rollouts_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2 completions .* 3 optimiser steps"):
        make_train_batches([MIXED], num_steps=3)


def test_an_empty_completion_takes_no_place() -> None:
    (batch,) = make_train_batches([group((1, 2), [rollout([]), rollout([3])])])
    assert batch.token_ids.tolist() == [[1, 2, 0], [1, 2, 3]]
    assert batch.loss_mask.sum().item() == 1


def test_batches_survive_a_checkpoint_that_holds_plain_types_only() -> None:
    batches = make_train_batches([MIXED], micro_batches_per_step=2)
    file = io.BytesIO()
    torch.save(train_batches_to_plain(batches), file)
    file.seek(0)
    restored = train_batches_from_plain(torch.load(file, weights_only=True))
    for before, after in zip(batches, restored, strict=True):
        for name in TrainBatch.__slots__:
            old, new = getattr(before, name), getattr(after, name)
            assert (old is None and new is None) or torch.equal(old, new)
