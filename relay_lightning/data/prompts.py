"""PromptDataModule: the prompts of GRPO's rollouts."""

from __future__ import annotations

from relay_lightning.data.collate import require_whole_micro_batches
from relay_lightning.data.loader import PositionedLoader, TrainPosition, read_position
from relay_lightning.data.problems import ProblemDataModule, require_positive
from relay_lightning.data.source import SourceMapping
from relay_lightning.data.stream import PromptStream, RolloutBatch, require_equal_shares


class PromptDataModule(ProblemDataModule):
    """Prompts for GRPO.

    Args:
        train: JSONL or Parquet file, folder or Hugging Face id, as text or as a mapping with the names of its columns
            (`filter --data.help`); or by name: tiny:train, gsm8k:train, math:train, dapo-17k, dapo-17k-filtered;
            null for a command that does not train.
        val: as `train`, validated on; also tiny:test, gsm8k:test, math:test, math500, aime24, aime25.
        test: as `val`; also what `predict` answers.
        num_train_problems: how many problems to take, the first ones; null takes all.
        num_val_problems: as above.
        num_test_problems: as above.
        prompts_per_rollout: prompts decoded at a time, over all processes; each is sampled `group_size` times.
        steps_per_rollout: optimiser steps that one rollout is used for; each takes an equal share of it.
        max_prompt_tokens: longer prompts are counted, reported and left out; they are never cut.
        eval_batch_size: prompts decoded together in validation, test and prediction, per process.
        seed: orders the training prompts, and selects the embedded world's problems.
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
        prompts_per_rollout: int = 16,
        steps_per_rollout: int = 1,
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
        require_positive(prompts_per_rollout=prompts_per_rollout, steps_per_rollout=steps_per_rollout)
        self.prompts_per_rollout = prompts_per_rollout
        self.steps_per_rollout = steps_per_rollout

    def require_whole_steps(self) -> None:
        trainer = self.trainer
        require_equal_shares(self.prompts_per_rollout, trainer.world_size)
        num_completions = self.prompts_per_rollout // trainer.world_size * trainer.lightning_module.decoding.group_size
        require_whole_micro_batches(num_completions, self.steps_per_rollout, trainer.accumulate_grad_batches)

    def train_dataloader(self) -> PositionedLoader[RolloutBatch]:
        trainer = self.trainer
        stream = PromptStream(
            self.build_prompts("train"),
            self.prompts_per_rollout,
            seed=self.seed,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        num_micro_batches = self.steps_per_rollout * trainer.accumulate_grad_batches
        return PositionedLoader(
            num_batches=stream.num_rollouts_per_pass * num_micro_batches,
            make_batch=lambda position: rollout_batch(stream, num_micro_batches, position),
            read_position=lambda: read_position(trainer),
            identity={
                "training prompts": stream.digest(),
                "data.seed": self.seed,
                "data.prompts_per_rollout": self.prompts_per_rollout,
                "data.steps_per_rollout": self.steps_per_rollout,
                "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
            },
        )


def rollout_batch(stream: PromptStream, num_micro_batches: int, position: TrainPosition) -> RolloutBatch:
    """The training step at `position`: every rollout is taken `num_micro_batches` times in a row."""
    place, micro_batch_index = divmod(position.batch_index, num_micro_batches)
    return RolloutBatch(
        stream,
        rollout_index=position.epoch * stream.num_rollouts_per_pass + place,
        micro_batch_index=micro_batch_index,
        num_micro_batches=num_micro_batches,
        batch_index=position.batch_index,
    )
