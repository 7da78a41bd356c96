"""`filter`: the problems that the teacher alone solves often enough (paper, section 4.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import torch

from relay_lightning import progress
from relay_lightning.commands.parser import run_function
from relay_lightning.commands.pass_rates import (
    append_rates,
    begun_on,
    keep_rows,
    output_text,
    read_rates,
    require_own_files,
    require_own_output,
)
from relay_lightning.data.chat_template import make_prompt
from relay_lightning.data.presets import resolve_source
from relay_lightning.data.prompt_limits import context_limit, drop_long_prompts
from relay_lightning.data.records import Problem, load_problems
from relay_lightning.data.source import SourceMapping
from relay_lightning.engine.kv_budget import KVCacheGB, require_sizes
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.evaluation.evaluate import evaluate
from relay_lightning.files import locked_file, write_atomically
from relay_lightning.models.loading import load_config, load_model, load_tokenizer
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.pair import build_engine
from relay_lightning.terminal import print_line

JudgeProblems = Callable[[Sequence[Problem]], list["Counts"]]
"""What came of the samples of each problem."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What came of a problem's samples."""

    num_correct: int
    num_unparsable: int
    """Answers that could not be understood; they count as wrong."""


@dataclass(frozen=True, slots=True)
class FilterSettings:
    """Everything that a pass rate depends on."""

    data: str | SourceMapping
    num_problems: int
    problems: str
    """Digest of the questions and answers: a file or a data set of the hub may have changed since."""
    teacher: str
    teacher_loading: LoadSettings
    num_samples: int
    temperature: float
    max_completion_tokens: int
    seed: int


def filter_(
    output: str,
    data: str | SourceMapping = "tiny:train",
    num_problems: int | None = 4096,
    teacher: str = "tiny:teacher",
    teacher_loading: LoadSettings = DEFAULT,
    num_samples: int = 10,
    threshold: float = 0.5,
    temperature: float = 0.7,
    max_completion_tokens: int = 192,
    max_num_seqs: int = 128,
    kv_cache_gb: KVCacheGB = "auto",
    problems_per_batch: int = 64,
    seed: int = 0,
) -> None:
    """Samples the teacher alone on every problem, and keeps the problems that it solves often enough.

    OUTPUT gets the kept problems, a JSONL row each, to train on. OUTPUT.pass_rates gets a row for every problem as
    soon as its samples are judged; an interrupted command goes on after the last of them, and another threshold needs
    no new samples. Files that this command did not write are never overwritten.

    Args:
        output: JSONL file for the problems that are kept.
        data: JSONL or Parquet file, folder or Hugging Face id, as text or as a mapping with the names of its columns
            (`--data.help`); or by name: tiny:train, gsm8k:train, math:train, dapo-17k.
        num_problems: how many problems to take, the first ones; null takes all.
        teacher: folder, hub id or `tiny:teacher`.
        teacher_loading: its number format, quantisation and attention.
        num_samples: samples per problem.
        threshold: share of correct samples from which on a problem is kept.
        temperature: of the samples.
        max_completion_tokens: budget of a sample.
        max_num_seqs: samples decoded at once, at most.
        kv_cache_gb: memory for keys and values in GB; `auto` takes most of what is free.
        problems_per_batch: problems judged together; an interruption loses at most so many.
        seed: of the samples, and of the embedded world's problems.
    """
    if num_samples < 1 or problems_per_batch < 1 or not 0 <= threshold <= 1:
        raise ValueError(
            "num_samples and problems_per_batch must be at least 1 and threshold in [0, 1], "
            f"but they are {num_samples}, {problems_per_batch} and {threshold}."
        )
    require_sizes(max_num_seqs, kv_cache_gb)
    rates_path = Path(f"{output}.pass_rates")
    with locked_file(rates_path) as file:
        require_own_files(Path(output), rates_path)
        day = begun_on(rates_path)
        problems = load_problems(data, num_problems=num_problems, seed=seed)
        problems = with_short_prompts(problems, data, teacher, teacher_loading, day)
        settings = FilterSettings(
            data,
            len(problems),
            digest(problems),
            teacher,
            teacher_loading,
            num_samples,
            temperature,
            max_completion_tokens,
            seed,
        )
        load_judge = partial(teacher_judge, settings, day, max_num_seqs, kv_cache_gb)
        rates = measure_rates(file, Path(output), problems, settings, day, load_judge, problems_per_batch)
    kept = keep_rows(rates, threshold)
    require_own_output(Path(output), rates)
    write_atomically(Path(output), output_text(kept))
    print_line(f"{len(kept)} of {len(rates)} problems are solved in {threshold:.0%} of the samples or more: {output}")
    if num_unparsable := sum(row["num_unparsable"] for row in rates):
        print(f"{num_unparsable} of {len(rates) * num_samples} answers could not be understood and count as wrong.")


def measure_rates(
    file: IO[bytes],
    output: Path,
    problems: Sequence[Problem],
    settings: FilterSettings,
    day: date,
    load_judge: Callable[[], JudgeProblems],
    problems_per_batch: int,
) -> list[dict[str, Any]]:
    """The row of every problem; those that are in the `file` OUTPUT.pass_rates already are not measured again.

    Raises as `read_rates` and `require_own_output` do, before the teacher is loaded.
    """
    plain_settings = asdict(settings)
    rates = read_rates(Path(f"{output}.pass_rates"), plain_settings, problems)
    require_own_output(output, rates)
    if rest := problems[len(rates) :]:
        for rows in judge_in_batches(rest, load_judge(), settings, problems_per_batch):
            append_rates(file, plain_settings, day, rows)
            rates += rows
    return rates


def digest(problems: Sequence[Problem]) -> str:
    """Identity of the problems, in their order."""
    text = json.dumps([(row.problem_id, row.question, row.answer) for row in problems])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_short_prompts(
    problems: Sequence[Problem], data: str | SourceMapping, teacher: str, loading: LoadSettings, day: date
) -> list[Problem]:
    """The problems whose prompts leave room in the teacher's context; says how many others are left out."""
    tokenizer = load_tokenizer(teacher, loading)
    prompts = [make_prompt(tokenizer, row.problem_id, row.question, row.answer, day) for row in problems]
    limit = context_limit("teacher", load_config(teacher, loading))
    kept = {prompt.prompt_id for prompt in drop_long_prompts(prompts, None, [limit], source=resolve_source(data))}
    return [problem for problem in problems if problem.problem_id in kept]


def teacher_judge(settings: FilterSettings, day: date, max_num_seqs: int, kv_cache_gb: KVCacheGB) -> JudgeProblems:
    """Judges by decoding with the teacher alone; a sample depends on its problem and the seed, not on its batch."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(settings.teacher, settings.teacher_loading)
    model = load_model(settings.teacher, None, settings.teacher_loading, device)
    # The one model alone is the engine's student; it is never offered a call.
    engine = build_engine(model, tokenizer, max_num_seqs=max_num_seqs, kv_cache_gb=kv_cache_gb)
    sampling = SamplingParams(settings.max_completion_tokens, settings.temperature)

    def judge(problems: Sequence[Problem]) -> list[Counts]:
        prompts = [make_prompt(tokenizer, row.problem_id, row.question, row.answer, day) for row in problems]
        result = evaluate(
            engine, prompts, sampling, "teacher_free", seed=settings.seed, num_samples=settings.num_samples
        )
        samples = iter(result.completions)
        grouped = [list(islice(samples, settings.num_samples)) for _ in problems]
        return [
            Counts(sum(row.is_correct for row in group), sum(row.is_unparsable for row in group)) for group in grouped
        ]

    return judge


def judge_in_batches(
    problems: Sequence[Problem], judge: JudgeProblems, settings: FilterSettings, batch_size: int
) -> Iterator[list[dict[str, Any]]]:
    """Rows of pass rates, a batch of problems at a time, behind a progress bar."""
    num_known = settings.num_problems - len(problems)
    with progress.display(), progress.work("judging", settings.num_problems, "problems", num_known) as work:
        for start in range(0, len(problems), batch_size):
            batch = problems[start : start + batch_size]
            yield [_rate_row(problem, counts, settings) for problem, counts in zip(batch, judge(batch), strict=True)]
            work.update(work.done + len(batch))


def _rate_row(problem: Problem, counts: Counts, settings: FilterSettings) -> dict[str, Any]:
    return {
        "question": problem.question,
        "answer": problem.answer,
        "problem_id": problem.problem_id,
        **asdict(counts),
        "num_samples": settings.num_samples,
        "pass_rate": counts.num_correct / settings.num_samples,
    }


def main(arguments: list[str]) -> None:
    """The subcommand."""
    run_function(filter_, arguments)
