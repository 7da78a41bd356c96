"""What a rollout costs: 1.7B and 8B write many completions together, the teacher about 1 % of their tokens.

Beside it the student alone at the same length; the teacher's share by itself, in full batches without waiting (its
prefill of every context once, and its tokens); and the released way, on shorter completions with as large a share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from benchmarks.bare_rows import BareRows
from benchmarks.bench_relay_decode import EndlessModel, Setup, greedy, relay_run, released_run
from benchmarks.gpu.scale import Scale, bar, text_tokenizer
from benchmarks.harness import seconds
from benchmarks.released_way import Conversation
from relay_lightning.data.chat_template import make_prompt
from relay_lightning.relay.requests import CallLimits, sample_requests
from relay_lightning.tiny.task import generate_problems

STUDENT, TEACHER = "1.7B", "8B"
LEAST_OF_IDEAL, LEAST_SPEEDUP = 0.85, 5.0
PREFILL_TOKENS = 128
"""Tokens of a chunk in which the teacher's ideal prefill reads its contexts."""


def measure(scale: Scale) -> Iterator[dict[str, Any]]:
    """Figures of each way, as soon as they are there."""
    tokenizer = text_tokenizer()
    setup = Setup(
        scale.random_model(STUDENT, tokenizer),
        scale.random_model(TEACHER, tokenizer),
        tokenizer,
        [
            make_prompt(tokenizer, index, problem.question)
            for index, problem in enumerate(generate_problems("test", scale.num_completions, seed=0))
        ],
        scale.max_num_seqs,
        repeats=1,
    )
    _warm_up(setup, scale)
    yield from _against_the_student_alone(setup, scale)
    yield from _against_the_released_way(setup, scale)


def _warm_up(setup: Setup, scale: Scale) -> None:
    """A short run of everything that the relay launches."""
    few = replace(setup, prompts=setup.prompts[: scale.max_num_seqs])
    scripts = few.scripts(1, scale.call_tokens, scale.released_tokens)
    relay_run(few, few.engine(EndlessModel), scripts, scale.released_tokens)()


def _against_the_student_alone(setup: Setup, scale: Scale) -> Iterator[dict[str, Any]]:
    engine, length = setup.engine(EndlessModel), scale.completion_tokens
    work = {"num_completions": scale.num_completions, "max_num_seqs": scale.max_num_seqs, "completion_tokens": length}
    num_tokens = scale.num_completions * length
    requests = sample_requests(setup.prompts, greedy(length), limits=CallLimits(max_calls=0))
    alone_s = seconds(lambda: engine.generate(requests), setup.device)
    yield {**work, "way": "student alone", "seconds": alone_s, "tokens_per_s": num_tokens / alone_s}
    teacher_s = seconds(lambda: _teacher_by_itself(setup, scale), setup.device)
    yield {**work, "way": "teacher's share alone", "seconds": teacher_s}
    scripts = setup.scripts(scale.num_calls, scale.call_tokens, length)
    relay_s = seconds(relay_run(setup, engine, scripts, length), setup.device)
    stats = engine.stats
    share = (alone_s + teacher_s) / relay_s
    yield {
        **work,
        "way": "relay",
        "seconds": relay_s,
        "tokens_per_s": stats.num_tokens / relay_s,
        "num_calls": stats.num_calls,
        "teacher_share": stats.num_teacher_tokens / stats.num_tokens,
        "teacher_prefill_tokens": stats.num_teacher_prefill_tokens,
        "student_s": stats.student_s,
        "teacher_s": stats.teacher_s,
        "prefill_s": stats.prefill_s,
        "host_s": stats.host_s,
        **bar("of the throughput of student and teacher each at their best", share, LEAST_OF_IDEAL, scale),
    }


def _teacher_by_itself(setup: Setup, scale: Scale) -> None:
    """The teacher reads as many contexts as there are completions, whole, and writes its tokens, all in one batch."""
    model, num_rows = EndlessModel(setup.teacher), scale.max_num_seqs
    num_context = len(setup.prompts[0].token_ids) + scale.completion_tokens
    num_tokens = scale.num_calls * scale.call_tokens
    rows = BareRows(model, num_rows, num_context + num_tokens, cuda_graphs=True)
    ids = torch.full((num_rows, num_context), 8, device=setup.device)
    token = ids[:, 0].clone()
    with model.session() as forward:
        for _ in range(-(-scale.num_completions // num_rows)):
            rows.reset()
            for chunk in ids.split(PREFILL_TOKENS, dim=1):
                rows.extend(forward, chunk)
            rows.decode(forward, token, num_tokens)


def _against_the_released_way(setup: Setup, scale: Scale) -> Iterator[dict[str, Any]]:
    """One batch of shorter completions by both ways."""
    setup, length = replace(setup, prompts=setup.prompts[: scale.max_num_seqs]), scale.released_tokens
    scripts = setup.scripts(1, max(1, length // 100), length)
    engine, rows = setup.engine(EndlessModel), list[Conversation]()
    relay_s = seconds(relay_run(setup, engine, scripts, length), setup.device)
    rate = engine.stats.num_tokens / relay_s
    work = {"num_completions": len(setup.prompts), "max_num_seqs": scale.max_num_seqs, "completion_tokens": length}
    yield {**work, "way": "relay", "seconds": relay_s, "tokens_per_s": rate, "num_calls": engine.stats.num_calls}
    # An end that nobody writes: without any, Transformers lets a row that has called write on beside the others.
    run_released = released_run(setup, scripts, length, setup.tokenizer.eos_token_id, rows)
    released_s = seconds(run_released, setup.device)
    released_rate = sum(row.num_tokens for row in rows) / released_s
    yield {
        **work,
        "way": "released",
        "seconds": released_s,
        "tokens_per_s": released_rate,
        "num_calls": sum(row.num_calls for row in rows),
        **bar("relay, times the released way", rate / released_rate, LEAST_SPEEDUP, scale),
    }
