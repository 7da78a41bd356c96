"""Trains the embedded pair from nothing: `python -m relay_lightning.tiny.build --out DIR [--seed 0] [--bf16]`.

Writes three Hugging Face folders, `student`, `warm-student` and `teacher`, and prints how each of them does on held-out
problems. The two networks differ in size and in what they were told: only the teacher's corpus holds catalogue prices.
The packaged student and teacher were made with `--bf16`, which is faster on processors that multiply in bfloat16.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen3Config, Qwen3ForCausalLM

from relay_lightning.files import new_folder
from relay_lightning.terminal import one_line
from relay_lightning.tiny.asides import insert_asides
from relay_lightning.tiny.evaluate import accuracy_by_kind, commands_per_completion, generate_texts, oracle_hooks
from relay_lightning.tiny.task import BENCHMARK_MIX, STUDENT_MIX, TEACHER_MIX, Kind, TinyProblem, generate_problems
from relay_lightning.tiny.tokenizer import (
    END_OF_TURN,
    MODEL_MAX_LENGTH,
    PADDING,
    chat_text,
    save_tokenizer,
    train_tokenizer,
)
from relay_lightning.tiny.training import Sample, Schedule, train
from relay_lightning.tiny.warmup import insert_commands

NUM_TEST_PROBLEMS = 500
TEST_SEED = 0


@dataclass(frozen=True, slots=True)
class Recipe:
    """Size, corpus and schedule of one network."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    mix: Mapping[Kind, int]
    has_asides: bool
    schedule: Schedule


STUDENT = Recipe(3, 128, 256, STUDENT_MIX, True, Schedule(num_steps=3500, batch_size=16, peak_lr=3e-3))
TEACHER = Recipe(4, 160, 320, TEACHER_MIX, False, Schedule(num_steps=3000, batch_size=16, peak_lr=2e-3))
WARMUP_SCHEDULE = Schedule(num_steps=300, batch_size=32, peak_lr=5e-4, num_warmup_steps=20)
NUM_WARMUP_COMPLETIONS = 3000


def new_model(recipe: Recipe, tokenizer: Tokenizer, seed: int) -> Qwen3ForCausalLM:
    """An untrained network: 4 query heads of 32 on 2 key heads, tied embeddings, fp32."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MODEL_MAX_LENGTH,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.token_to_id(END_OF_TURN),
        pad_token_id=tokenizer.token_to_id(PADDING),
        bos_token_id=None,
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def pretrain(recipe: Recipe, tokenizer: Tokenizer, seed: int, label: str, has_bf16: bool = False) -> Qwen3ForCausalLM:
    """A network trained on fresh training problems of the recipe's mix; no problem comes twice but by chance."""
    model = new_model(recipe, tokenizer, seed)
    corpus_seeds = itertools.count(1_000_000 * (seed + 1))
    rng = random.Random(seed)

    def draw_samples(count: int) -> list[Sample]:
        problems = generate_problems("train", count, next(corpus_seeds), recipe.mix)
        samples = _samples(tokenizer, problems, _encode(tokenizer, [problem.solution for problem in problems]))
        return [insert_asides(sample, tokenizer, rng) for sample in samples] if recipe.has_asides else samples

    train(model, draw_samples, replace(recipe.schedule, has_bf16=has_bf16), seed, label)
    return model


def warm_up(student: Qwen3ForCausalLM, tokenizer: Tokenizer, seed: int) -> Qwen3ForCausalLM:
    """The student taught the command's syntax on its own completions (method: self-sampled at T=1, commands inserted).

    Trains `student` in place and gives it back.
    """
    problems = generate_problems("train", NUM_WARMUP_COMPLETIONS, 2_000_000 + seed, BENCHMARK_MIX)
    completions = generate_texts(student, tokenizer, problems, temperature=1.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def draw_samples(count: int) -> list[Sample]:
        rows = torch.randint(len(problems), (count,), generator=generator).tolist()
        called = [insert_commands(completions[row], tokenizer, generator) for row in rows]
        return _samples(tokenizer, [problems[row] for row in rows], called)

    train(student, draw_samples, WARMUP_SCHEDULE, seed, "warm-student")
    return student


def save_model(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes a Hugging Face folder: weights as fp16 to halve the package, declared fp32 so that they load as such."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.config.dtype = torch.float32
    model.save_pretrained(folder, state_dict=state)
    save_tokenizer(tokenizer, folder)


def report(model: Qwen3ForCausalLM, tokenizer: Tokenizer, label: str, problems: Sequence[TinyProblem]) -> None:
    """Prints accuracy by kind, greedy, sampled at T=1, and greedy with the hidden prices written by an oracle."""
    settings: list[tuple[str, float, Callable | None]] = [("greedy", 0.0, None), ("T=1", 1.0, None)]
    if label != "teacher":
        settings.append(("greedy + oracle", 0.0, oracle_hooks(tokenizer)))
    for name, temperature, hooks in settings:
        completions = generate_texts(model, tokenizer, problems, temperature, hooks=hooks)
        texts = tokenizer.decode_batch(completions)
        scores = ", ".join(f"{kind} {share:.1%}" for kind, share in accuracy_by_kind(problems, texts).items())
        print(f"{label}, {name}: {scores}; {commands_per_completion(texts):.2f} commands a completion", flush=True)


def build(out: Path, seed: int, has_bf16: bool) -> None:
    """Trains, saves and reports all three. Raises as `new_folder` does, before any training."""
    with ExitStack() as reserved:
        for name in ("teacher", "student", "warm-student"):
            reserved.enter_context(new_folder(out / name))
        _build(out, seed, has_bf16)


def _build(out: Path, seed: int, has_bf16: bool) -> None:
    tokenizer = train_tokenizer()
    problems = generate_problems("test", NUM_TEST_PROBLEMS, TEST_SEED)
    started_s = time.monotonic()

    def finish(model: Qwen3ForCausalLM, label: str) -> None:
        save_model(model, tokenizer, out / label)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        print(f"{label}: {num_parameters:,} parameters, saved after {(time.monotonic() - started_s) / 60:.1f} minutes")
        report(model, tokenizer, label, problems)

    finish(pretrain(TEACHER, tokenizer, seed, "teacher", has_bf16), "teacher")
    student = pretrain(STUDENT, tokenizer, seed, "student", has_bf16)
    finish(student, "student")
    finish(warm_up(student, tokenizer, seed), "warm-student")


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def _samples(tokenizer: Tokenizer, problems: Sequence[TinyProblem], completions: list[list[int]]) -> list[Sample]:
    """Each completion, closed by the end of the turn, behind its chat-templated prompt."""
    end_id = tokenizer.token_to_id(END_OF_TURN)
    prompts = _encode(tokenizer, [chat_text(problem.question) for problem in problems])
    return [Sample(prompt, [*ids, end_id]) for prompt, ids in zip(prompts, completions, strict=True)]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for student, warm-student and teacher")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, corpora and sampling")
    parser.add_argument("--bf16", action="store_true", help="pretrain with bfloat16 matrix products")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.seed, arguments.bf16)
    except OSError as error:
        parser.error(one_line(str(error)))


if __name__ == "__main__":
    main()
