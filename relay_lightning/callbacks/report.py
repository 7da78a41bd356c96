"""Report: what a run changed, measured on held-out problems before its first step and after its last."""

from __future__ import annotations

import hashlib
import json
import time
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from typing_extensions import override

from relay_lightning import progress
from relay_lightning.callbacks.result_file import ResultFile, read_results, weights_digest
from relay_lightning.callbacks.run_folder import RunFolder
from relay_lightning.evaluation.evaluate import EvalResult
from relay_lightning.evaluation.relay_report import HeldOut, measure_after, measure_before, measure_routers
from relay_lightning.evaluation.summary import (
    installed_versions,
    relay_fields,
    summary_lines,
    summary_markdown,
    summary_table,
)
from relay_lightning.files import write_atomically
from relay_lightning.models.loading import load_model
from relay_lightning.models.settings import LoadSettings
from relay_lightning.pair import local_model
from relay_lightning.processes import gather_in_turn
from relay_lightning.relay.engine import RelayEngine
from relay_lightning.relay.relay_config import AUTO, CallLimit
from relay_lightning.relay.requests import CallLimits
from relay_lightning.terminal import one_line
from relay_lightning.types import Prompt


class Report(Callback):
    """Measures before and after training, prints the table and writes `summary.json`.

    Args:
        enabled: whether to measure at all.
        num_problems: held-out problems, of the data's test split; null takes all of it.
        base_student: checkpoint that counts as the student alone; null takes the one that training starts from.
        base_student_loading: its number format, quantisation and attention; null takes the student's in training.
        routers: whether to measure the random routers.
        num_router_seeds: times each router is measured, with another seed each.
        sampled: whether to measure the relay at temperature 1 as well, before and after: a student that is only warmed
            up seldom calls when it takes its most probable token.
        max_call_tokens: longest span that one call can get while it is measured; null sets no limit, so that lengths
            are what the student asks for; `auto` takes the limit of training.
    """

    def __init__(
        self,
        enabled: bool = True,
        num_problems: int | None = None,
        base_student: str | None = None,
        base_student_loading: LoadSettings | None = None,
        routers: bool = True,
        num_router_seeds: int = 3,
        sampled: bool = False,
        max_call_tokens: CallLimit = AUTO,
    ) -> None:
        if num_router_seeds < 1 or (num_problems is not None and num_problems < 1):
            raise ValueError(
                "report.num_problems and report.num_router_seeds must be at least 1, "
                f"but are {num_problems} and {num_router_seeds}."
            )
        self.enabled = enabled
        self.num_problems = num_problems
        self.base_student = base_student
        self.base_student_loading = base_student_loading
        self.routers = routers
        self.router_seeds = range(num_router_seeds)
        self.sampled = sampled
        self.max_call_tokens = max_call_tokens
        self._begun_s = time.perf_counter()
        self._before: UserDict[str, EvalResult] | None = None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Seconds the run took up to here, so that a resumed run's `wall_s` counts all of its parts."""
        return {"wall_s": time.perf_counter() - self._begun_s}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._begun_s -= state_dict["wall_s"]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a damaged file, and reads the held-out problems, before any model is loaded."""
        if self.enabled:
            read_results(RunFolder.of(trainer).baseline, {})
            trainer.datamodule.setup("test")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.enabled:
            return
        prompts = self._prompts(trainer)
        self._before = self._results_before(trainer, pl_module, prompts)
        if trainer.global_step == 0:
            held_out = replace(self._held_out(trainer, pl_module, prompts), kept=self._before)
            base = self._base(pl_module, held_out) if "student_alone" not in self._before else None
            with trainer.precision_plugin.val_step_context():
                measure_before(held_out, base, sampled=self.sampled)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.enabled:
            return
        pl_module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        prompts = self._prompts(trainer)
        if self._before is None:
            self._before = self._results_before(trainer, pl_module, prompts)
        identity = self._identity(pl_module, prompts) | model_digests(pl_module)
        after = self._result_file(trainer, RunFolder.of(trainer).results, identity)
        held_out = replace(self._held_out(trainer, pl_module, prompts), kept=after)
        routers = {}
        with trainer.precision_plugin.val_step_context():
            results = {**self._before, **measure_after(held_out, sampled=self.sampled)}
            if self.routers and {"relay_after", "teacher_alone"} <= results.keys():
                routers = measure_routers(held_out, results, self.router_seeds)
        if trainer.is_global_zero:
            summary = relay_fields(results, routers) | self._run_fields(trainer, pl_module)
            write_atomically(RunFolder.of(trainer).summary, json.dumps(summary, indent=2) + "\n")
            print_summary(summary, RunFolder.of(trainer))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("summary", summary_markdown(summary), trainer.global_step)

    def _results_before(
        self, trainer: Trainer, pl_module: LightningModule, prompts: Sequence[Prompt]
    ) -> UserDict[str, EvalResult]:
        """What the run measured before its first step; before that step only if it was measured on these very models.

        Later the student is another one, and the names of the models have to do.
        """
        path, identity = RunFolder.of(trainer).baseline, self._identity(pl_module, prompts)
        if trainer.global_step == 0:
            return self._result_file(trainer, path, identity | model_digests(pl_module))
        stored = self._result_file(trainer, path, identity)
        if not stored:
            rank_zero_info(f"{path} has no figures of these problems from before training; they are left out.")
        return stored

    def _result_file(self, trainer: Trainer, path: Path, identity: Mapping[str, Any]) -> UserDict[str, EvalResult]:
        """The results at `path` that are of `identity`. Rank 0 decides for all, so that all measure the same."""
        stored = trainer.strategy.broadcast(read_results(path, identity))
        return ResultFile(path, identity, stored) if trainer.is_global_zero else UserDict(stored)

    def _run_fields(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return {
            "student": pl_module.student_name,
            "teacher": pl_module.teacher_name,
            "base_student": self.base_student or pl_module.student_name,
            "step": trainer.global_step,
            "seed": pl_module.seed,
            "wall_s": time.perf_counter() - self._begun_s,
            "num_threads": torch.get_num_threads(),
            "device": str(pl_module.device),
            "versions": installed_versions(),
        }

    def _prompts(self, trainer: Trainer) -> list[Prompt]:
        """The held-out prompts, the same on every process."""
        return trainer.datamodule.build_prompts("test")[: self.num_problems]

    def _held_out(self, trainer: Trainer, pl_module: LightningModule, prompts: Sequence[Prompt]) -> HeldOut:
        """This process's share of the prompts."""
        own = prompts[trainer.global_rank :: trainer.world_size]
        return HeldOut(
            pl_module.engine,
            own,
            pl_module.max_completion_tokens,
            self._limits(pl_module),
            watch=_follow(len(own)),
            gather=lambda result: EvalResult(tuple(gather_in_turn(result.completions))),
        )

    def _base(self, pl_module: LightningModule, held_out: HeldOut) -> HeldOut | None:
        if self.base_student is None or self.base_student == pl_module.student_name:
            return None
        loading = self.base_student_loading or pl_module.student_loading
        model = local_model(load_model(self.base_student, None, loading, pl_module.device), pl_module.tokenizer)
        engine = held_out.engine
        alone = RelayEngine(
            model,
            None,
            engine.protocol,
            max_num_seqs=engine.max_num_seqs,
            kv_cache_gb=engine.kv_cache_gb,
            block_size=engine.block_size,
            cuda_graphs=engine.cuda_graphs,
        )
        return replace(held_out, engine=alone)

    def _limits(self, pl_module: LightningModule) -> CallLimits:
        limits: CallLimits = pl_module.call_limits
        return limits if self.max_call_tokens == AUTO else replace(limits, max_call_tokens=self.max_call_tokens)

    def _identity(self, pl_module: LightningModule, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What the figures from before depend on."""
        text = ";".join(f"{prompt.prompt_id}:{prompt.token_ids}" for prompt in prompts)
        return {
            "student": pl_module.student_name,
            "base_student": self.base_student,
            "loading": [repr(pl_module.student_loading), repr(self.base_student_loading)],
            "teacher": pl_module.teacher_name,
            "prompts": hashlib.sha256(text.encode()).hexdigest(),
            "max_completion_tokens": pl_module.max_completion_tokens,
            "sampled": self.sampled,
            **asdict(self._limits(pl_module)),
        }


def model_digests(pl_module: LightningModule) -> dict[str, str | None]:
    """Identity of the weights that are measured."""
    student, teacher = pl_module.engine.student, pl_module.engine.teacher
    return {
        "student_weights": weights_digest(student.model),
        "teacher_weights": None if teacher is None else weights_digest(teacher.model.model),
    }


def print_summary(summary: dict[str, Any], folder: RunFolder) -> None:
    """The table, the derived figures, and where everything is."""
    console = Console(highlight=False)
    console.print()
    console.print(summary_table(summary))
    for line in summary_lines(summary):
        console.print(line, markup=False, soft_wrap=True)
    console.print(one_line(f"{summary['wall_s']:.0f} s · {folder.path}"), markup=False, soft_wrap=True)


def _follow(num_prompts: int) -> Callable[[str], Callable[[int], None]]:
    """Name of a measurement -> what shows the number of its finished completions."""

    def watch(name: str) -> Callable[[int], None]:
        work = progress.begin(name, num_prompts, "problems")

        def follow(num_finished: int) -> None:
            work.update(num_finished)
            if num_finished == num_prompts:
                work.close()

        return follow

    return watch
