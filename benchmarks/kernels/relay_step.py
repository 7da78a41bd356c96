"""`relay_step`: one step of the batch at a vocabulary of 151,936, plain and cut to the most probable tokens.

The logits are normal with a deviation of 3: the 50 best tokens hold about a third of the weight, and 43 of them 95 % of
that third. FlashInfer only samples; log-probabilities, automaton, budgets and writes it leaves to others.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from relay_kernels.relay_step import (
    CommandTable,
    RandomStream,
    RelayStepInputs,
    RelayStepState,
    RowStatus,
    TokenSource,
    philox_uniform,
    relay_step,
)
from relay_kernels.relay_step.reference import relay_step_reference
from relay_kernels.relay_step.sampling import keep_most_probable
from torch import Tensor

from benchmarks.kernels.bars import Bar, ceiling_percent, speedup_over_fastest_rival, times
from benchmarks.kernels.case import Case, Work, compiled, is_importable
from benchmarks.kernels.gate import Check, judge, judge_equal
from benchmarks.kernels.target import Target

MAX_TOKENS = 4096
"""More than all contestants together make steps, so that no row ends."""
NUM_STATES = 24
NUM_EOS = 2
SPREAD = 3.0
WHOLE: Mapping[str, float] = MappingProxyType({})
CUT: Mapping[str, float] = MappingProxyType({"top_k": 50, "top_p": 0.95})
SEED = 7


@dataclass(frozen=True, slots=True)
class Step:
    """The logits of a batch and the state they move on."""

    logits: Tensor  # [B, V]
    state: RelayStepState
    whole: RelayStepState  # the same without top-k and top-p
    table: CommandTable
    eos_token_ids: Tensor


def draw(target: Target, num_rows: int, vocab_size: int, options: Mapping[str, float]) -> Step:
    """A step in which every row goes on: no token completes a command and the end is all but impossible."""
    logits = target.normal(num_rows, vocab_size, scale=SPREAD)
    logits[:, -NUM_EOS:] = -1e4
    state = RelayStepState.empty(num_rows, MAX_TOKENS, target.device)
    state.status.fill_(int(RowStatus.STUDENT))
    state.token_limit.fill_(MAX_TOKENS)
    state.sample_index.copy_(torch.arange(num_rows))
    state.seed.fill_(SEED)
    whole = copy.deepcopy(state)
    for name, value in options.items():
        getattr(state, name).fill_(value)
    table = CommandTable(
        next_state=target.integers(0, NUM_STATES, NUM_STATES, vocab_size, dtype=torch.uint8),
        is_complete=torch.zeros(NUM_STATES, vocab_size, dtype=torch.bool, device=target.device),
        is_opening=torch.zeros(NUM_STATES, vocab_size, dtype=torch.bool, device=target.device),
        digit_action=target.integers(0, 4, NUM_STATES, vocab_size, dtype=torch.int16),
        digit_scale=torch.tensor([1, 10, 100, 0], device=target.device),
        digit_value=torch.tensor([0, 7, 42, 3], device=target.device),
    )
    eos_token_ids = torch.arange(vocab_size - NUM_EOS, vocab_size, device=target.device)
    return Step(logits, state, whole, table, eos_token_ids)


def call(step: Step, backend: str, truncates: bool, is_whole: bool = False) -> None:
    relay_step(
        step.logits, step.whole if is_whole else step.state, writer=TokenSource.STUDENT,
        eos_token_ids=step.eos_token_ids, table=step.table, truncates=truncates, backend=backend,
    )  # fmt: skip


def check(step: Step, backend: str, truncates: bool) -> list[Check]:
    """Draws, log-probabilities and state after one step.

    A draw errs by how far the uniform number lies outside the token's interval of the fp64 cumulative distribution:
    two implementations may well draw neighbours where it lies on the edge.
    """
    plain, actual = copy.deepcopy(step), copy.deepcopy(step)
    call(plain, "reference", truncates)
    call(actual, backend, truncates)
    before, rows = step.state, torch.arange(step.logits.shape[0], device=step.logits.device)
    uniform = philox_uniform(
        before.seed, before.prompt_id, before.sample_index, before.num_tokens, RandomStream.STUDENT
    )
    log_probs = step.logits.double().log_softmax(-1)
    kept = log_probs.exp()
    if truncates:
        kept = keep_most_probable(kept, before.top_k, before.top_p.double(), before.min_p.double())
    cut_log_probs = (kept / kept.sum(-1, keepdim=True)).log()

    def errors(names: str, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities minus those of the tokens that were drawn, and the zeros they should be."""
        ours, theirs = (
            getattr(found.state, names)[rows, before.num_tokens] - truth[rows, found.state.last_token]
            for found in (actual, plain)
        )
        return ours, theirs, torch.zeros_like(ours)

    # One rounding for each level of a pairwise sum over the vocabulary.
    floor = torch.finfo(torch.float32).eps * math.log2(step.logits.shape[1])
    misses = [distance(kept, uniform, found.state.last_token) for found in (actual, plain)]
    agrees = actual.state.last_token == plain.state.last_token
    largest = float(log_probs.gather(1, actual.state.last_token[:, None]).abs().max())
    return [
        judge("draw", *misses, torch.zeros_like(misses[0]), floor=floor),
        judge("log_probs", *errors("log_probs", log_probs), floor=floor * max(1.0, largest)),
        judge("sampling_log_probs", *errors("sampling_log_probs", cut_log_probs), floor=floor * max(1.0, largest)),
        *(
            judge_equal(name, getattr(actual.state, name)[agrees], getattr(plain.state, name)[agrees])
            for name in ("status", "num_tokens", "command_state", "command_n")
        ),
    ]


def distance(kept: Tensor, uniform: Tensor, token: Tensor) -> Tensor:
    """[B]: how far `uniform` lies outside the tokens' intervals of the cumulative weight; inf for a weight of 0."""
    share = (kept / kept.sum(-1, keepdim=True)).gather(1, token[:, None])[:, 0]
    upper = (kept.cumsum(-1) / kept.sum(-1, keepdim=True)).gather(1, token[:, None])[:, 0]
    outside = torch.maximum(upper - share - uniform, uniform - upper).clamp(min=0.0)
    return outside.masked_fill(share == 0, math.inf)


def reference(step: Step, truncates: bool) -> None:
    """The reference without the checks before it."""
    relay_step_reference(
        RelayStepInputs(step.logits, step.state, TokenSource.STUDENT, step.eos_token_ids, None, step.table, truncates)
    )


def flash_infer(step: Step, options: Mapping[str, float], generator: torch.Generator | None) -> Tensor:
    """FlashInfer's sampler with the same cuts."""
    from flashinfer import sampling

    if not options:
        return sampling.sampling_from_logits(step.logits, generator=generator)
    return sampling.top_k_top_p_sampling_from_logits(
        step.logits, int(options["top_k"]), options["top_p"], generator=generator
    )


def cases(target: Target) -> list[Case]:
    vocab_size = 151_936 if target.is_full else 5000
    return [
        case(target, num_rows, vocab_size, options)
        for options in (WHOLE, CUT)
        for num_rows in ((64, 256) if target.is_full else (4,))
    ]


def case(target: Target, num_rows: int, vocab_size: int, options: Mapping[str, float]) -> Case:
    truncates = bool(options)
    whole = partial(call, backend=target.backend, truncates=False, is_whole=True)
    rivals: dict[str, Work] = {
        "reference": partial(reference, truncates=truncates),
        "torch.compile": compiled(partial(reference, truncates=truncates)),
    }
    has_flash_infer = is_importable("flashinfer")
    if has_flash_infer:
        rivals["FlashInfer, sampling only"] = partial(flash_infer, options=options, generator=target.generator)
    whole_bars = (Bar("% of copy bandwidth", ceiling_percent, 70, 85, is_upper=False),)
    cut_bars = (
        Bar("times the temperature-only step", times("temperature only"), 2.5, 1.5),
        Bar("times as fast as the fastest rival", speedup_over_fastest_rival, 1.0, is_upper=False),
    )
    return Case(
        op="relay_step",
        setting=", ".join(f"{name} {value}" for name, value in options.items()) or "temperature only",
        shape={"B": num_rows, "V": vocab_size},
        make_inputs=lambda: draw(target, num_rows, vocab_size, options),
        ours=partial(call, backend=target.backend, truncates=truncates),
        check=partial(check, backend=target.backend, truncates=truncates),
        num_bytes=num_rows * vocab_size * target.dtype.itemsize,
        bars=cut_bars if options else whole_bars,
        rivals=rivals,
        yardsticks={"temperature only": whole} if options else {},
        absent=() if has_flash_infer else ("FlashInfer",),
        is_intact=lambda step: bool((step.state.status == int(RowStatus.STUDENT)).all()),
    )
