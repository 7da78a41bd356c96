"""The stream of training prompts: which prompts a rollout decodes, as a pure function of its number."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache

from relay_lightning.types import Completion, Prompt


class PromptStream:
    """Prompts of every rollout: pass by pass over the data, each pass in an order of its own.

    Rank r of `world_size` takes every world_size-th prompt of a rollout, so that all ranks together decode the same
    prompts as one process would. A pass drops the last prompts that do not fill a rollout; no prompt occurs twice in
    one. Raises ValueError when a rollout cannot be filled or divided.
    """

    def __init__(
        self, prompts: Sequence[Prompt], prompts_per_rollout: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        require_equal_shares(prompts_per_rollout, world_size)
        if prompts_per_rollout > len(prompts):
            raise ValueError(f"prompts_per_rollout is {prompts_per_rollout}, but there are {len(prompts)} prompts.")
        self.prompts = tuple(prompts)
        self.prompts_per_rollout = prompts_per_rollout
        self.seed = seed
        self._rank = rank
        self._world_size = world_size
        self._order = lru_cache(maxsize=8)(self._draw_order)

    @property
    def num_rollouts_per_pass(self) -> int:
        """Rollouts in one pass over the data."""
        return len(self.prompts) // self.prompts_per_rollout

    def rollout_prompts(self, rollout_index: int, sampling_round: int = 0) -> list[Prompt]:
        """This rank's prompts of a rollout; later sampling rounds (dynamic sampling) draw from other orders."""
        pass_index, place = divmod(rollout_index, self.num_rollouts_per_pass)
        start = place * self.prompts_per_rollout
        chosen = self._order(pass_index, sampling_round)[start : start + self.prompts_per_rollout]
        return [self.prompts[index] for index in chosen[self._rank :: self._world_size]]

    def digest(self) -> str:
        """Identity of the prompts, in their order."""
        text = ";".join(f"{prompt.prompt_id}:{prompt.token_ids}" for prompt in self.prompts)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _draw_order(self, pass_index: int, sampling_round: int) -> list[int]:
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed}/{pass_index}/{sampling_round}").shuffle(order)
        return order


def require_equal_shares(prompts_per_rollout: int, world_size: int) -> None:
    """Raises ValueError unless the prompts of a rollout can be dealt out evenly to the processes."""
    if prompts_per_rollout < 1 or prompts_per_rollout % world_size:
        raise ValueError(
            f"prompts_per_rollout must be a positive multiple of the {world_size} processes, "
            f"but is {prompts_per_rollout}."
        )


class RolloutBatch:
    """One training step's share of a rollout: which rollout, which of its micro-batches, and the prompts behind it.

    All micro-batches of a rollout carry the same prompts; the first one has them decoded. Not a dataclass and not a
    collection, so that Lightning, which walks through those to move and convert tensors, leaves it alone.
    """

    __slots__ = ("_stream", "batch_index", "micro_batch_index", "num_micro_batches", "rollout_index")

    def __init__(
        self,
        stream: PromptStream,
        *,
        rollout_index: int,
        micro_batch_index: int,
        num_micro_batches: int,
        batch_index: int,
    ) -> None:
        self._stream = stream
        self.rollout_index = rollout_index
        """Number of the rollout since training began."""
        self.micro_batch_index = micro_batch_index
        self.num_micro_batches = num_micro_batches
        """Micro-batches that this rank's completions of one rollout are divided into."""
        self.batch_index = batch_index
        """The trainer's `batch_idx`."""

    def draw_prompts(self, sampling_round: int = 0) -> list[Prompt]:
        """The prompts of a sampling round; round 0 are the rollout's own, later ones replace what was dropped."""
        return self._stream.rollout_prompts(self.rollout_index, sampling_round)


class PromptBatch:
    """Prompts to be decoded for validation, test or prediction. Opaque to Lightning as `RolloutBatch` is."""

    __slots__ = ("prompts",)

    def __init__(self, prompts: list[Prompt]) -> None:
        self.prompts = prompts


class CompletionBatch:
    """What `predict` gives of a batch: its prompts and, in the same order, their completions. Opaque as well."""

    __slots__ = ("completions", "prompts")

    def __init__(self, prompts: list[Prompt], completions: list[Completion]) -> None:
        self.prompts = prompts
        self.completions = completions


class PromptLoader:
    """This rank's prompts in batches; every rank gets the same number of batches, so some of the last may be empty."""

    def __init__(self, prompts: Sequence[Prompt], batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        own = list(prompts[rank::world_size])
        largest_share = -(-len(prompts) // world_size)
        self._batches = [PromptBatch(own[start : start + batch_size]) for start in range(0, largest_share, batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[PromptBatch]:
        return iter(self._batches)
