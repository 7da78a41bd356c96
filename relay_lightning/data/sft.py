"""WarmupDataModule: self-sampled completions with commands written into them, as supervised batches.

Legend: B rows, T tokens of the longest row.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from relay_lightning.data.commands import insert_commands
from relay_lightning.data.loader import PositionedLoader, TrainPosition, read_position
from relay_lightning.data.problems import ProblemDataModule
from relay_lightning.data.source import SourceMapping


@dataclass(frozen=True, slots=True)
class SelfSample:
    """A completion that the untrained student wrote."""

    prompt_token_ids: tuple[int, ...]
    completion_token_ids: tuple[int, ...]
    """Without the end-of-sequence token."""
    eos_token_id: int | None
    """The end-of-sequence token that the student wrote; None when it ran out of tokens first."""


@dataclass(frozen=True, slots=True)
class CommandSettings:
    """How commands are written into completions: arguments of `insert_commands`."""

    max_commands: int
    max_digit_exponent: int
    command_free_share: float


class SFTBatch:
    """One micro-batch of supervised rows. Opaque to Lightning's walk through batches, as `RolloutBatch` is."""

    __slots__ = ("batch_index", "loss_mask", "num_step_loss_tokens", "token_ids")

    def __init__(self, token_ids: Tensor, loss_mask: Tensor, num_step_loss_tokens: int, batch_index: int) -> None:
        self.token_ids = token_ids
        """[B, T] int64, right-padded."""
        self.loss_mask = loss_mask
        """[B, T] bool: tokens of the completion."""
        self.num_step_loss_tokens = num_step_loss_tokens
        """Completion tokens of the whole optimiser step on all processes."""
        self.batch_index = batch_index


def require_whole_micro_batches(batch_size: int, micro_batches_per_step: int, world_size: int) -> None:
    """Raises ValueError unless the processes' micro-batches of one optimizer step are all of one size."""
    if batch_size < 1 or batch_size % (micro_batches_per_step * world_size):
        raise ValueError(
            f"batch_size must be a positive multiple of {micro_batches_per_step} micro-batches "
            f"(trainer.accumulate_grad_batches) times {world_size} processes, but is {batch_size}."
        )


def require_enough_samples(batch_size: int, num_samples: int) -> None:
    """Raises ValueError if the samples do not fill one optimizer step."""
    if batch_size > num_samples:
        raise ValueError(f"batch_size is {batch_size}, but there are {num_samples} self-sampled completions.")


class SFTStream:
    """Micro-batches as a pure function of (epoch, batch index).

    An optimiser step takes `batch_size` samples over all processes, each pass in an order and with commands of its
    own; they are dealt out to the processes and their micro-batches. Raises ValueError when a step cannot be filled or
    divided.
    """

    def __init__(
        self,
        samples: Sequence[SelfSample],
        encode_command: Callable[[int], list[int]],
        commands: CommandSettings,
        *,
        batch_size: int,
        micro_batches_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        max_tokens: int | None = None,
    ) -> None:
        """max_tokens: of prompt and completion; what commands make longer is cut to it. None cuts nothing."""
        require_whole_micro_batches(batch_size, micro_batches_per_step, world_size)
        require_enough_samples(batch_size, len(samples))
        self.samples = tuple(samples)
        self.micro_batches_per_step = micro_batches_per_step
        self._encode_command = encode_command
        self._commands = commands
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._max_tokens = max_tokens
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._step = lru_cache(maxsize=2)(self._draw_step)

    @property
    def num_batches_per_pass(self) -> int:
        """Micro-batches of one process in one pass; samples that do not fill a step are left out of it."""
        return len(self.samples) // self._batch_size * self.micro_batches_per_step

    def batch(self, position: TrainPosition) -> SFTBatch:
        """The micro-batch of this process at `position`."""
        step_index, micro_batch_index = divmod(position.batch_index, self.micro_batches_per_step)
        rows = self._step(position.epoch, step_index)
        num_loss_tokens = sum(len(completion) for _, completion in rows)
        size = self._batch_size // (self.micro_batches_per_step * self._world_size)
        first = (micro_batch_index * self._world_size + self._rank) * size
        return SFTBatch(*stack_rows(rows[first : first + size]), num_loss_tokens, position.batch_index)

    def digest(self) -> str:
        """Identity of the samples, in their order."""
        text = ";".join(f"{sample.prompt_token_ids}{sample.completion_token_ids}" for sample in self.samples)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _draw_order(self, epoch: int) -> list[int]:
        order = list(range(len(self.samples)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order

    def _draw_step(self, epoch: int, step_index: int) -> list[tuple[Sequence[int], list[int]]]:
        """(prompt, completion with commands) of every sample of a step, sorted by length to save padding."""
        first = step_index * self._batch_size
        rows = [
            (self.samples[index].prompt_token_ids, self._with_commands(epoch, index))
            for index in self._order(epoch)[first : first + self._batch_size]
        ]
        return sorted(rows, key=lambda row: len(row[0]) + len(row[1]))

    def _with_commands(self, epoch: int, index: int) -> list[int]:
        sample, commands = self.samples[index], self._commands
        called = insert_commands(
            sample.completion_token_ids,
            self._encode_command,
            random.Random(f"{self._seed}/{epoch}/{index}"),
            max_commands=commands.max_commands,
            max_digit_exponent=commands.max_digit_exponent,
            command_free_share=commands.command_free_share,
        )
        whole = called if sample.eos_token_id is None else [*called, sample.eos_token_id]
        return whole if self._max_tokens is None else whole[: self._max_tokens - len(sample.prompt_token_ids)]


def stack_rows(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] int64 and loss mask [B, T] bool of (prompt, completion) pairs, right-padded."""
    num_tokens = max(len(prompt) + len(completion) for prompt, completion in rows)
    token_ids = torch.zeros(len(rows), num_tokens, dtype=torch.int64)
    loss_mask = torch.zeros(len(rows), num_tokens, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(rows):
        start, stop = len(prompt), len(prompt) + len(completion)
        token_ids[row, :stop] = torch.tensor([*prompt, *completion])
        loss_mask[row, start:stop] = True
    return token_ids, loss_mask


class WarmupDataModule(ProblemDataModule):
    """Data of the warm-up: the training problems' prompts, completed by the untrained student itself.

    The completions come from the module being trained (`WarmupModule.self_sample`), which keeps them on disk.

    Args:
        train: problems to complete: JSONL or Parquet file, folder or Hugging Face id, as text or as a mapping with the
            names of its columns (`filter --data.help`); or by name: tiny:train, gsm8k:train, math:train, dapo-17k,
            dapo-17k-filtered; null for a command that does not train.
        val: as `train`, validated on; also tiny:test, gsm8k:test, math:test, math500, aime24, aime25.
        test: as `val`; also what `predict` answers.
        num_train_problems: how many problems to take, the first ones; null takes all.
        num_val_problems: as above.
        num_test_problems: as above.
        batch_size: completions of an optimiser step, over all processes and micro-batches.
        max_commands: commands in one completion at most.
        max_digit_exponent: a command asks for d * 10^k tokens, d in 1..9, k in 0..this.
        command_free_share: share of completions without a command; the others get 1 to `max_commands`.
        max_prompt_tokens: longer prompts are counted, reported and left out; they are never cut.
        eval_batch_size: prompts decoded together in validation, test and prediction, per process.
        seed: orders the samples, places the commands, and selects the embedded world's problems.
    """

    def __init__(
        self,
        *,
        train: str | SourceMapping | None = "tiny:train",
        val: str | SourceMapping | None = "tiny:test",
        test: str | SourceMapping | None = "tiny:test",
        num_train_problems: int | None = 4096,
        num_val_problems: int | None = 64,
        num_test_problems: int | None = 500,
        batch_size: int = 32,
        max_commands: int = 3,
        max_digit_exponent: int = 3,
        command_free_share: float = 0.25,
        max_prompt_tokens: int = 1024,
        eval_batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(
            train=train,
            val=val,
            test=test,
            num_train_problems=num_train_problems,
            num_val_problems=num_val_problems,
            num_test_problems=num_test_problems,
            max_prompt_tokens=max_prompt_tokens,
            eval_batch_size=eval_batch_size,
            seed=seed,
        )
        self.batch_size = batch_size
        self.commands = CommandSettings(max_commands, max_digit_exponent, command_free_share)

    def require_whole_steps(self) -> None:
        require_whole_micro_batches(self.batch_size, self.trainer.accumulate_grad_batches, self.trainer.world_size)

    def train_dataloader(self) -> PositionedLoader[SFTBatch]:
        trainer = self.trainer
        module = trainer.lightning_module
        prompts = self.build_prompts("train")
        require_enough_samples(self.batch_size, len(prompts) * module.samples_per_prompt)
        stream = SFTStream(
            module.self_sample(prompts),
            module.encode_command,
            self.commands,
            batch_size=self.batch_size,
            micro_batches_per_step=trainer.accumulate_grad_batches,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            max_tokens=module.engine.student.max_context,
        )
        return PositionedLoader(
            num_batches=stream.num_batches_per_pass,
            make_batch=stream.batch,
            read_position=lambda: read_position(trainer),
            identity={
                "self-sampled completions": stream.digest(),
                "data.seed": self.seed,
                "data.batch_size": self.batch_size,
                "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
            },
        )
