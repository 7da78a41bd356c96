"""The loader that follows the trainer's position."""

from __future__ import annotations

import pytest

from relay_lightning.data.loader import PositionedLoader, TrainPosition


class Clock:
    """Stands for the trainer: its position moves only when told to."""

    def __init__(self, epoch: int, batch_index: int) -> None:
        self.position = TrainPosition(epoch, batch_index)

    def advance(self) -> None:
        self.position = TrainPosition(self.position.epoch, self.position.batch_index + 1)


def make_loader(clock: Clock, **identity: int) -> PositionedLoader[TrainPosition]:
    return PositionedLoader(
        4, make_batch=lambda position: position, read_position=lambda: clock.position, identity=identity
    )


def test_batches_start_where_the_trainer_stands() -> None:
    clock = Clock(epoch=2, batch_index=1)
    seen = []
    for batch in make_loader(clock):
        seen.append(batch)
        clock.advance()
    assert seen == [(2, 1), (2, 2), (2, 3)]


def test_a_batch_is_given_again_when_the_trainer_did_not_move_on() -> None:
    batches = iter(make_loader(Clock(epoch=0, batch_index=3)))
    assert next(batches) == next(batches) == (0, 3)


def test_a_checkpoint_of_other_data_is_refused() -> None:
    clock = Clock(0, 0)
    state = make_loader(clock, seed=0, size=4).state_dict()
    make_loader(clock, seed=0, size=4).load_state_dict(state)
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        make_loader(clock, seed=1, size=4).load_state_dict(state)
