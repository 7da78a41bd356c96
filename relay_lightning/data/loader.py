"""A data loader without a state of its own: every batch is a function of where the trainer stands.

Lightning saves its progress (epoch, batches of the epoch) in every checkpoint and restores it on resume, but it does
not forward an ordinary loader to that place, and a loader that counts for itself can be one batch ahead of the trainer
when a run is interrupted. This one asks the trainer at every batch, so there is nothing that could disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from lightning.pytorch import Trainer

Batch = TypeVar("Batch")


class TrainPosition(NamedTuple):
    """Where training stands: the batch to be drawn next."""

    epoch: int
    batch_index: int
    """Counted from 0 within the epoch; the `batch_idx` that `training_step` is given."""


def read_position(trainer: Trainer) -> TrainPosition:
    """The trainer's position as its loops count it, also right after a checkpoint was restored."""
    loop = trainer.fit_loop
    return TrainPosition(loop.epoch_progress.current.processed, loop.epoch_loop.batch_progress.current.ready)


class PositionedLoader(Generic[Batch]):
    """Yields `make_batch(position)` for the position that `read_position` reports, `num_batches` an epoch.

    `identity` names what the batches depend on (plain values). It is saved with a checkpoint, and a checkpoint of
    another identity is refused with a ValueError: training would go on with other data than it began with.
    """

    def __init__(
        self,
        num_batches: int,
        make_batch: Callable[[TrainPosition], Batch],
        read_position: Callable[[], TrainPosition],
        identity: Mapping[str, int | str],
    ) -> None:
        self._num_batches = num_batches
        self._make_batch = make_batch
        self._read_position = read_position
        self._identity = dict(identity)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        while (position := self._read_position()).batch_index < self._num_batches:
            yield self._make_batch(position)

    def state_dict(self) -> dict[str, Any]:
        """The identity: what a resumed run must share."""
        return dict(self._identity)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Refuses the checkpoint of a run on other data, naming what differs."""
        changed = [
            f"{name} was {state.get(name)!r} and is {value!r}"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if changed:
            raise ValueError(f"The checkpoint cannot be continued on these data: {'; '.join(changed)}.")
