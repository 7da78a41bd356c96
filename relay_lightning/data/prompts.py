"""PromptDataModule: the prompts of rollouts, validation, test and prediction."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only

from relay_lightning.data.chat_template import make_prompt
from relay_lightning.data.loader import PositionedLoader, TrainPosition, read_position
from relay_lightning.data.records import Problem, load_problems
from relay_lightning.data.stream import PromptLoader, PromptStream, RolloutBatch
from relay_lightning.types import Prompt

logger = logging.getLogger(__name__)


class PromptDataModule(LightningDataModule):
    """Prompts for GRPO.

    Args:
        train: JSONL file, or `tiny:train`.
        val: JSONL file, or `tiny:test`; the first `num_val_problems` are validated on.
        test: JSONL file, or `tiny:test`; also what `predict` answers.
        num_train_problems: how many problems to take; null takes a whole file.
        num_val_problems: as above.
        num_test_problems: as above.
        question_column: column of the question in a JSONL row.
        answer_column: column of the reference answer in a JSONL row.
        prompts_per_rollout: prompts decoded at a time, over all processes; each is sampled `group_size` times.
        steps_per_rollout: optimiser steps that one rollout is used for; each takes an equal share of it.
        max_prompt_tokens: longer prompts are counted, reported and left out; they are never cut.
        eval_batch_size: prompts decoded together in validation, test and prediction, per process.
        seed: orders the training prompts, and selects the embedded world's problems.
    """

    def __init__(
        self,
        *,
        train: str = "tiny:train",
        val: str = "tiny:test",
        test: str = "tiny:test",
        num_train_problems: int | None = 4096,
        num_val_problems: int | None = 64,
        num_test_problems: int | None = 500,
        question_column: str = "question",
        answer_column: str = "answer",
        prompts_per_rollout: int = 16,
        steps_per_rollout: int = 1,
        max_prompt_tokens: int = 1024,
        eval_batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _require_positive(
            steps_per_rollout=steps_per_rollout, max_prompt_tokens=max_prompt_tokens, eval_batch_size=eval_batch_size
        )
        self.sources = {
            "train": (train, num_train_problems),
            "val": (val, num_val_problems),
            "test": (test, num_test_problems),
        }
        self.question_column = question_column
        self.answer_column = answer_column
        self.prompts_per_rollout = prompts_per_rollout
        self.steps_per_rollout = steps_per_rollout
        self.max_prompt_tokens = max_prompt_tokens
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.problems: dict[str, list[Problem]] = {}
        """Problems by split ("train", "val", "test"), filled by `setup`."""

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, so that a bad file is reported before any model is loaded."""
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in needed:
            if split not in self.problems:
                source, num_problems = self.sources[split]
                self.problems[split] = load_problems(
                    source,
                    num_problems=num_problems,
                    seed=self.seed,
                    question_column=self.question_column,
                    answer_column=self.answer_column,
                )

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

    def val_dataloader(self) -> PromptLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> PromptLoader:
        return self._eval_loader("test")

    def predict_dataloader(self) -> PromptLoader:
        return self._eval_loader("test")

    def build_prompts(self, split: str) -> list[Prompt]:
        """The split's prompts in the student's vocabulary, without those that are too long.

        Raises ValueError if none is left.
        """
        tokenizer = self.trainer.lightning_module.tokenizer
        prompts = [
            make_prompt(tokenizer, problem.problem_id, problem.question, problem.answer)
            for problem in self.problems[split]
        ]
        return drop_long_prompts(prompts, self.max_prompt_tokens, source=self.sources[split][0])

    def _eval_loader(self, split: str) -> PromptLoader:
        trainer = self.trainer
        prompts = self.build_prompts(split)
        return PromptLoader(prompts, self.eval_batch_size, rank=trainer.global_rank, world_size=trainer.world_size)


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


def drop_long_prompts(prompts: Sequence[Prompt], max_prompt_tokens: int, *, source: str) -> list[Prompt]:
    """The prompts of at most `max_prompt_tokens` tokens; says how many of `source` were left out.

    Raises ValueError if all were.
    """
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= max_prompt_tokens]
    num_dropped = len(prompts) - len(kept)
    if not kept:
        raise ValueError(
            f"All {num_dropped} prompts of {source} are longer than max_prompt_tokens={max_prompt_tokens}."
        )
    if num_dropped:
        _report(
            f"{num_dropped} of {len(prompts)} prompts of {source} are longer than {max_prompt_tokens} tokens: left out."
        )
    return kept


@rank_zero_only
def _report(message: str) -> None:
    logger.warning(message)


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
