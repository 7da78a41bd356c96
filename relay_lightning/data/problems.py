"""ProblemDataModule: what the data modules share. Problems by split, and prompts to be decoded for evaluation."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule

from relay_lightning.data.notices import notify
from relay_lightning.data.presets import resolve_source
from relay_lightning.data.prompt_limits import drop_long_prompts
from relay_lightning.data.records import Problem, count_shared, load_problems
from relay_lightning.data.source import SourceMapping
from relay_lightning.data.stream import PromptLoader
from relay_lightning.types import Prompt

STAGE_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}

NEEDED_BY = {
    "train": "fit trains on it",
    "val": "fit and validate measure on it",
    "test": "test, predict and the report of fit need it",
}


class ProblemDataModule(LightningDataModule):
    """Problems of three splits; validation and test prompts. The module being trained builds the prompts.

    Arguments are those of `PromptDataModule`.
    """

    def __init__(
        self,
        *,
        train: str | SourceMapping | None,
        val: str | SourceMapping | None,
        test: str | SourceMapping | None,
        num_train_problems: int | None,
        num_val_problems: int | None,
        num_test_problems: int | None,
        max_prompt_tokens: int,
        eval_batch_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        require_positive(max_prompt_tokens=max_prompt_tokens, eval_batch_size=eval_batch_size)
        self.sources = {
            split: (resolve_source(source), num_problems)
            for split, source, num_problems in (
                ("train", train, num_train_problems),
                ("val", val, num_val_problems),
                ("test", test, num_test_problems),
            )
            if source is not None
        }
        """Source and number of problems by split, without those that are null."""
        self.max_prompt_tokens = max_prompt_tokens
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.problems: dict[str, list[Problem]] = {}
        """Problems by split ("train", "val", "test"), filled by `setup`."""

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, before any model is loaded. Raises ValueError for a split that is null."""
        added = [split for split in STAGE_SPLITS[stage] if split not in self.problems]
        for split in added:
            if split not in self.sources:
                raise ValueError(f"data.{split} is null, but {NEEDED_BY[split]}; name a file or a data set.")
            source, num_problems = self.sources[split]
            self.problems[split] = load_problems(source, num_problems=num_problems, seed=self.seed)
        for held_out in ("val", "test"):
            if {"train", held_out} <= self.problems.keys() and not {"train", held_out}.isdisjoint(added):
                self._notify_of_leak(held_out)

    def require_whole_steps(self) -> None:
        """Raises ValueError if processes and micro-batches cannot divide what an optimizer step trains on."""

    def val_dataloader(self) -> PromptLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> PromptLoader:
        return self._eval_loader("test")

    def predict_dataloader(self) -> PromptLoader:
        return self._eval_loader("test")

    def build_prompts(self, split: str) -> list[Prompt]:
        """The split's prompts in the student's vocabulary, without those that are too long.

        Longer than `max_prompt_tokens`, or without room in the context of student or teacher. Raises ValueError if
        none is left.
        """
        module = self.trainer.lightning_module
        prompts = module.build_prompts(self.problems[split])
        source, _ = self.sources[split]
        return drop_long_prompts(prompts, self.max_prompt_tokens, module.prompt_limits(), source=source)

    def _notify_of_leak(self, split: str) -> None:
        """Says how many questions of a held-out split are trained on."""
        held_out = self.problems[split]
        if num_shared := count_shared(held_out, self.problems["train"]):
            notify(
                f"{num_shared} of the {len(held_out)} problems of data.{split} ({self.sources[split][0]}) are also in "
                f"data.train ({self.sources['train'][0]}): what is measured on them was trained on."
            )

    def _eval_loader(self, split: str) -> PromptLoader:
        trainer = self.trainer
        prompts = self.build_prompts(split)
        return PromptLoader(prompts, self.eval_batch_size, rank=trainer.global_rank, world_size=trainer.world_size)


def require_positive(**values: int) -> None:
    """Raises ValueError naming the first value that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but is {value}.")
