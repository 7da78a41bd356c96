"""Batch: the sequences that the student decodes together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from relay_lightning.engine.context import Context
from relay_lightning.engine.model_runner import BeforeSampling
from relay_lightning.relay.policy_rows import PolicyRows
from relay_lightning.relay.scheduler import Scheduler
from relay_lightning.relay.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """Running sequences and what follows from who they are. It serves until the scheduler's version changes."""

    version: int = -1
    contexts: list[Context] = field(default_factory=list)
    """In the order of their rows."""
    sequences: list[Sequence] = field(default_factory=list)
    before_sampling: BeforeSampling | None = None
    policies: tuple[int, ...] = ()
    """Ids of the policies that `before_sampling` asks."""
    truncates: bool = False
    """A sequence samples with top-k, top-p or min-p."""
    has_stop: bool = False
    """A sequence has stop strings."""

    @classmethod
    def of(cls, scheduler: Scheduler, by_row: Mapping[int, Sequence], policy_rows: PolicyRows) -> Batch:
        """Returns the batch of all that run."""
        contexts = sorted(scheduler.running.values(), key=lambda context: context.row)
        sequences = [by_row[context.row] for context in contexts]
        before_sampling, policies = policy_rows.before_sampling([sequence.policy for sequence in sequences])
        return cls(
            scheduler.version,
            contexts,
            sequences,
            before_sampling,
            policies,
            truncates=any(sequence.request.sampling.truncates for sequence in sequences),
            has_stop=any(sequence.stop is not None for sequence in sequences),
        )
