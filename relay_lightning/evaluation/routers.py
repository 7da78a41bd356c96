"""Routers that guess: what the same student and teacher reach when chance decides who writes.

A learned relay must beat them at the same accuracy (with fewer teacher tokens) or the same teacher tokens (with a
higher accuracy). Both figures come out of the relay engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay_lightning.evaluation.evaluate import EvalResult, Judged
from relay_lightning.relay.policies import Policy, RandomQueryPolicy, RandomTokenPolicy

PROBABILITY_STEP = 1 / 1024
"""How fine the matching probability is searched; a hundredth of the sampling error of 500 problems."""

Measure = Callable[[Policy, int], EvalResult]
"""(policy, seed) -> the result of a greedy decode of the held-out problems under it."""


@dataclass(frozen=True, slots=True)
class RouterResult:
    """A router's figures over its seeds."""

    probability: float
    """Of handing a query (or a token) to the teacher."""
    accuracy: float
    teacher_token_share: float
    """Teacher tokens over all tokens, sum over sum."""
    num_seeds: int
    is_matched: bool
    """Whether the router reaches what it was matched to; False when even the teacher alone does not."""


def match_query_router(
    student: EvalResult, teacher: EvalResult, target_accuracy: float, seeds: Sequence[int]
) -> RouterResult:
    """The query router of the fewest teacher tokens that is as accurate as `target_accuracy`.

    `student` and `teacher` are greedy decodes of the same prompts by either alone: a routed query is decoded exactly
    as one of them, so a router's result is put together from theirs (`mix_by_query`).
    """

    def measure(policy: Policy, seed: int) -> EvalResult:
        return mix_by_query(student, teacher, policy, seed)

    low, high = 0.0, 1.0  # invariant: accuracy(low) < target <= accuracy(high), if anything reaches the target
    if student.accuracy >= target_accuracy:
        return measure_router(measure, RandomQueryPolicy(low), low, seeds, is_matched=True)
    if teacher.accuracy < target_accuracy:
        return measure_router(measure, RandomQueryPolicy(high), high, seeds, is_matched=False)
    while high - low > PROBABILITY_STEP:
        middle = (low + high) / 2
        tried = measure_router(measure, RandomQueryPolicy(middle), middle, seeds, is_matched=True)
        low, high = (low, middle) if tried.accuracy >= target_accuracy else (middle, high)
    return measure_router(measure, RandomQueryPolicy(high), high, seeds, is_matched=True)


def run_query_router(measure: Measure, matched: RouterResult, seeds: Sequence[int]) -> RouterResult:
    """`matched`, with the figures of decoding every query under it."""
    policy = RandomQueryPolicy(matched.probability)
    return measure_router(measure, policy, matched.probability, seeds, is_matched=matched.is_matched)


def run_token_router(measure: Measure, call_ratio: float, seeds: Sequence[int]) -> RouterResult:
    """The router that gives each single token to the teacher with the probability of the relay's own budget."""
    policy = RandomTokenPolicy(n=1, p=call_ratio)
    return measure_router(measure, policy, call_ratio, seeds, is_matched=True)


def measure_router(
    measure: Measure, policy: Policy, probability: float, seeds: Sequence[int], *, is_matched: bool
) -> RouterResult:
    """The figures of `policy` over all `seeds` together."""
    judged = [judged for seed in seeds for judged in measure(policy, seed).completions]
    together = EvalResult(tuple(judged))
    return RouterResult(probability, together.accuracy, together.call_ratio, len(seeds), is_matched)


def mix_by_query(student: EvalResult, teacher: EvalResult, policy: Policy, seed: int) -> EvalResult:
    """What a query-routing policy gets: each prompt's result from the writer that the policy gives it to."""
    return EvalResult(
        tuple(
            by_teacher if policy.begin(by_student.prompt_id, 0, seed) else by_student
            for by_student, by_teacher in _same_prompts(student, teacher)
        )
    )


def _same_prompts(student: EvalResult, teacher: EvalResult) -> list[tuple[Judged, Judged]]:
    pairs = list(zip(student.completions, teacher.completions, strict=True))
    if any(by_student.prompt_id != by_teacher.prompt_id for by_student, by_teacher in pairs):
        raise ValueError("The student's and the teacher's results are not of the same prompts.")
    return pairs
