"""`synthesize`: the warm-up's data, completions that the student itself writes (paper, section 3.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from relay_lightning import progress
from relay_lightning.commands.parser import run_function
from relay_lightning.data.chat_template import make_prompt
from relay_lightning.data.commands import MAX_COMMANDS, MAX_DIGIT_EXPONENT, insert_commands
from relay_lightning.data.presets import resolve_source
from relay_lightning.data.prompt_limits import context_limit, drop_long_prompts
from relay_lightning.data.records import load_problems
from relay_lightning.data.sft import CommandSettings, SelfSample
from relay_lightning.data.source import SourceMapping
from relay_lightning.engine.kv_budget import KVCacheGB, require_sizes
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.files import new_file, write_atomically
from relay_lightning.json_lines import json_line
from relay_lightning.models.loading import load_config, load_tokenizer, load_untrained
from relay_lightning.models.settings import DEFAULT, LoadSettings
from relay_lightning.modules.self_samples import draw_self_samples, fingerprint
from relay_lightning.pair import build_engine, local_model
from relay_lightning.relay.protocol import CompiledProtocol
from relay_lightning.terminal import print_line
from relay_lightning.types import Prompt


def synthesize(
    output: str | None = None,
    cache_dir: str = ".cache/self_samples",
    data: str | SourceMapping = "tiny:train",
    num_problems: int | None = 4096,
    student: str = "tiny:student",
    student_loading: LoadSettings = DEFAULT,
    samples_per_prompt: int = 1,
    max_completion_tokens: int = 192,
    temperature: float = 1.0,
    max_commands: int = MAX_COMMANDS,
    max_digit_exponent: int = MAX_DIGIT_EXPONENT,
    command_free_share: float = 0.25,
    max_num_seqs: int = 128,
    kv_cache_gb: KVCacheGB = "auto",
    seed: int = 0,
) -> None:
    """Samples completions from the student alone, and writes commands into them.

    A row of OUTPUT has the prompt, the student's own completion as text and token ids, and the same with commands, as
    any supervised trainer takes it. Without OUTPUT the rows go to the cache of the warm-up, which then starts at once
    (it draws commands anew in every epoch, and reads the student's own completions only).

    Args:
        output: JSONL file; null writes into the cache.
        cache_dir: the warm-up's `model.cache_dir`.
        data: JSONL or Parquet file, folder or Hugging Face id, as text or as a mapping with the names of its columns
            (`--data.help`); or by name: tiny:train, gsm8k:train, math:train, dapo-17k.
        num_problems: how many problems to take, the first ones; null takes all.
        student: folder, hub id or `tiny:student`.
        student_loading: its number format, quantisation and attention; the warm-up's, for its cache.
        samples_per_prompt: completions of each problem.
        max_completion_tokens: budget of a completion.
        temperature: of the samples.
        max_commands: commands in one completion at most.
        max_digit_exponent: a command asks for d * 10^k tokens, d in 1..9, k in 0..this.
        command_free_share: share of completions without a command.
        max_num_seqs: completions decoded at once, at most.
        kv_cache_gb: memory for keys and values in GB; `auto` takes most of what is free.
        seed: of the samples, the commands, and the embedded world's problems.
    """
    require_sizes(max_num_seqs, kv_cache_gb)
    problems = load_problems(data, num_problems=num_problems, seed=seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sampling = SamplingParams(max_completion_tokens, temperature)
    with ExitStack() as reserved:
        path = reserved.enter_context(new_file(Path(output))) if output else None
        tokenizer = load_tokenizer(student, student_loading)
        prompts = [make_prompt(tokenizer, row.problem_id, row.question, row.answer) for row in problems]
        limit = context_limit("student", load_config(student, student_loading))
        prompts = drop_long_prompts(prompts, None, [limit], source=resolve_source(data))
        model = load_untrained(student, student_loading, device)
        if path is None:
            identity = fingerprint(
                model.state_dict(),
                prompts,
                sampling,
                samples_per_prompt=samples_per_prompt,
                seed=seed,
                eos_token_ids=local_model(model, tokenizer).eos_token_ids,
            )
            path = reserved.enter_context(new_file(Path(cache_dir) / f"{identity}.jsonl"))
        engine = build_engine(model.to(device), tokenizer, max_num_seqs=max_num_seqs, kv_cache_gb=kv_cache_gb)
        engine.protocol.spell(1)  # raises before anything is decoded
        with progress.display(), progress.work("sampling", len(prompts) * samples_per_prompt, "completions") as work:
            samples = draw_self_samples(
                engine,
                prompts,
                sampling,
                samples_per_prompt=samples_per_prompt,
                seed=seed,
                on_progress=work.update,
            )
        settings = CommandSettings(max_commands, max_digit_exponent, command_free_share)
        rows = sample_rows(prompts, samples, settings, tokenizer, engine.protocol, seed)
        write_atomically(path, "".join(map(json_line, rows)))
    print_line(f"{len(samples)} completions: {path}")


def sample_rows(
    prompts: Sequence[Prompt],
    samples: Sequence[SelfSample],
    commands: CommandSettings,
    tokenizer: Any,
    protocol: CompiledProtocol,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """A row of plain types for each sample, those of a prompt in a row."""
    samples_per_prompt = len(samples) // len(prompts)
    for index, sample in enumerate(samples):
        called = insert_commands(
            sample.completion_token_ids,
            protocol.spell,
            random.Random(f"{seed}/{index}"),
            max_commands=commands.max_commands,
            max_digit_exponent=commands.max_digit_exponent,
            command_free_share=commands.command_free_share,
        )
        yield {
            "prompt": prompts[index // samples_per_prompt].text,
            "completion": tokenizer.decode(sample.completion_token_ids),
            "completion_with_commands": tokenizer.decode(called),
            **asdict(sample),
        }


def main(arguments: list[str]) -> None:
    """The subcommand."""
    run_function(synthesize, arguments)
