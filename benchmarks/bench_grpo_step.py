"""Samples per second and peak memory of a whole GRPO step, against TRL's GRPOTrainer, in one process on one machine.

A step is: decode some prompts x 8 samples at temperature 1 (teacher-free), judge the answers, one optimiser step on all
of it. Both trainers get the same student, prompts, sampling, reward function, loss, precision and batch; gradient
checkpointing, logging to files and checkpoints are off for both. They take turns, so that a machine whose speed drifts
favours neither, and the first steps of each turn (allocations, compilation) do not count.

On a CPU the student is the embedded one, with 16 prompts and at most 160 tokens; on a GPU it has the architecture of
Qwen3-0.6B and random weights, in bf16-mixed, with 2 prompts and 512 tokens, which hardly ever end before.

    pip install -e ".[bench]" && python -m benchmarks.bench_grpo_step

With --by-op the rivals are our own step with one of its ops by its definition: what each op gains.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from benchmarks.by_definition import TRAINING, by_definition
from benchmarks.gpu.scale import Scale, text_tokenizer
from benchmarks.harness import print_table, write_result
from benchmarks.kernels.case import is_importable
from relay_lightning.data.chat_template import make_prompt
from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.records import load_problems
from relay_lightning.models.loading import load_model, load_tokenizer
from relay_lightning.modules.grpo import GRPOModule
from relay_lightning.rewards.answers import is_correct

NUM_WARMUP_STEPS = 2
"""Steps at the start of a turn that are not counted."""
RANDOM_STUDENT = "0.6B"
LEARNING_RATE = 1e-6
"""So small that the student, and with it the length of its completions, stays the same throughout."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One GRPO step."""

    student: str = "tiny:student"
    num_prompts: int = 16
    group_size: int = 8
    max_completion_tokens: int = 160
    precision: Literal["32-true", "bf16-mixed"] = "32-true"

    @property
    def num_samples(self) -> int:
        return self.num_prompts * self.group_size


@dataclass(slots=True)
class Turns:
    """What one trainer's counted steps took."""

    step_s: list[float] = field(default_factory=list)
    num_tokens: list[float] = field(default_factory=list)
    """Mean completion tokens of each step."""
    peak_bytes: int | None = None
    """Most memory that its tensors held on a GPU, in any step."""

    def figures(self, setting: Setting) -> dict[str, Any]:
        """Rates from the median step, and how far the steps scatter."""
        median_s, num_tokens = statistics.median(self.step_s), statistics.mean(self.num_tokens)
        return {
            "samples_per_s": setting.num_samples / median_s,
            "median_step_s": median_s,
            "mean_completion_tokens": num_tokens,
            "tokens_per_s": setting.num_samples * num_tokens / median_s,
            "peak_bytes": self.peak_bytes,
            "step_s": [round(seconds, 3) for seconds in self.step_s],
        }


def run_relay(setting: Setting, num_steps: int, turns: Turns) -> None:
    """One turn of this project's GRPO."""

    class Clock(Callback):
        """Time from the end of one step to the end of the next."""

        last_s = 0.0

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            now_s = time.perf_counter()
            if trainer.global_step > NUM_WARMUP_STEPS:
                turns.step_s.append(now_s - self.last_s)
                completions = [rollout.completion for group in pl_module.last_groups for rollout in group.rollouts]
                turns.num_tokens.append(statistics.mean(completion.num_tokens for completion in completions))
            self.last_s = now_s

    module = GRPOModule(
        student=setting.student,
        teacher=None,
        group_size=setting.group_size,
        max_num_seqs=setting.num_samples,
        max_completion_tokens=setting.max_completion_tokens,
        reward="simple",
        loss_type="dapo",
        epsilon_high=0.2,
        delta=None,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0),
    )
    data = PromptDataModule(prompts_per_rollout=setting.num_prompts, num_train_problems=1024)
    trainer = Trainer(
        max_steps=num_steps + NUM_WARMUP_STEPS,
        precision=setting.precision,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
    )
    trainer.fit(module, data)


def run_by_definition(op: str, setting: Setting, num_steps: int, turns: Turns) -> None:
    """A turn of ours with one op in plain PyTorch."""
    with by_definition(op):
        run_relay(setting, num_steps, turns)


def run_trl(setting: Setting, num_steps: int, turns: Turns) -> None:
    """One turn of TRL's GRPOTrainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = load_tokenizer(setting.student)
    problems = load_problems("tiny:train", num_problems=1024)
    rows = [
        {"prompt": make_prompt(tokenizer, problem.problem_id, problem.question).text, "answer": problem.answer}
        for problem in problems
    ]

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [float(is_correct(text, reference)) for text, reference in zip(completions, answer, strict=True)]

    class Clock(TrainerCallback):
        """As above; the length comes from TRL's own metric."""

        last_s = 0.0

        def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
            now_s = time.perf_counter()
            if state.global_step > NUM_WARMUP_STEPS:
                turns.step_s.append(now_s - self.last_s)
                turns.num_tokens.append(trainer._metrics["train"]["completions/mean_length"][-1])
            self.last_s = now_s

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=load_model(setting.student, dtype=torch.float32),
            processing_class=tokenizer,
            reward_funcs=reward,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Clock()],
            args=GRPOConfig(
                output_dir=folder,
                max_steps=num_steps + NUM_WARMUP_STEPS,
                per_device_train_batch_size=setting.num_samples,
                gradient_accumulation_steps=1,
                num_generations=setting.group_size,
                max_completion_length=setting.max_completion_tokens,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                beta=0.0,
                loss_type="dapo",
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                max_grad_norm=1.0,
                weight_decay=0.0,
                gradient_checkpointing=False,
                bf16=setting.precision == "bf16-mixed",
                use_cpu=not torch.cuda.is_available(),
                logging_steps=10**6,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        trainer.train()


def main() -> None:
    """Takes the turns and prints what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="turns of each trainer")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of a turn")
    parser.add_argument("--by-op", action="store_true", help="what each op of a step gains, without TRL")
    parser.add_argument("--random", action="store_true", help="take the random student on a CPU too, a minute one")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rivals: dict[str, tuple[Callable[[Setting, int, Turns], None], Turns]] = {"relay_lightning": (run_relay, Turns())}
    if arguments.by_op:
        rivals |= {f"{op} by definition": (partial(run_by_definition, op), Turns()) for op in TRAINING}
    elif is_importable("trl") and is_importable("datasets"):
        rivals["trl"] = (run_trl, Turns())
    with tempfile.TemporaryDirectory() as folder:
        is_random = arguments.random or device.type == "cuda"
        setting = random_setting(Scale.of(device), folder) if is_random else Setting()
        for turn in range(arguments.turns):
            for run, turns in rivals.values():
                seed_everything(turn, verbose=False)
                with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                    _take_turn(run, setting, arguments.steps, turns, device)
    figures = {name: turns.figures(setting) for name, (_, turns) in rivals.items()}
    header = ("", "samples/s", "median step s", "tokens/sample", "tokens/s")
    print_table(
        f"GRPO step: {setting.num_prompts} prompts x {setting.group_size} samples, teacher-free",
        header,
        [(name, *list(found.values())[:4]) for name, found in figures.items()],
    )
    ratio = None
    if "trl" in figures:
        ratio = figures["relay_lightning"]["samples_per_s"] / figures["trl"]["samples_per_s"]
        print(f"  relay-lightning trains on {ratio:.2f} times the samples per second of TRL")
    elif not arguments.by_op:
        print("  no rival: TRL is not installed (pip install -e '.[bench]')")
    named = asdict(setting) | ({"student": f"random {RANDOM_STUDENT}"} if is_random else {})
    write_result(
        "grpo_step_by_op" if arguments.by_op else "grpo_step",
        device,
        {"setting": named, "times_trl": ratio, "contestants": figures},
    )


def random_setting(scale: Scale, folder: str) -> Setting:
    """A student with random weights, written to `folder`, and work of its size; on a CPU both are minute."""
    tokenizer = text_tokenizer()
    scale.random_model(RANDOM_STUDENT, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not scale.is_full:
        return Setting(folder, num_prompts=2, max_completion_tokens=16)
    return Setting(folder, num_prompts=2, max_completion_tokens=512, precision="bf16-mixed")


def _take_turn(
    run: Callable[[Setting, int, Turns], None], setting: Setting, num_steps: int, turns: Turns, device: torch.device
) -> None:
    gc.collect()  # What the other has left.
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    run(setting, num_steps, turns)
    if device.type == "cuda":
        turns.peak_bytes = max(turns.peak_bytes or 0, torch.cuda.max_memory_allocated(device))


if __name__ == "__main__":
    main()
