"""Random routers: matching by accuracy, and what a routed query gets."""

import pytest

from relay_lightning.evaluation.evaluate import EvalResult, Judged
from relay_lightning.evaluation.routers import match_query_router, measure_router, mix_by_query
from relay_lightning.relay.policies import RandomQueryPolicy

SEEDS = range(3)


def alone(correct: list[bool], *, is_teacher: bool) -> EvalResult:
    """Ten tokens a completion, all by one writer."""
    return EvalResult(
        tuple(
            Judged(prompt_id, flag, 10, 10 if is_teacher else 0, int(is_teacher), 0)
            for prompt_id, flag in enumerate(correct)
        )
    )


STUDENT = alone([index < 120 for index in range(300)], is_teacher=False)  # 40 %
TEACHER = alone([True] * 300, is_teacher=True)


@pytest.mark.slow
def test_router_reaches_the_accuracy_it_is_matched_to_with_as_few_teacher_tokens_as_it_can():
    matched = match_query_router(STUDENT, TEACHER, 0.85, SEEDS)
    assert matched.is_matched
    assert 0.85 <= matched.accuracy <= 0.87
    assert matched.teacher_token_share == pytest.approx(0.75, abs=0.05)  # 0.4 + 0.6 p = 0.85
    cheaper = RandomQueryPolicy(matched.probability - 0.01)
    short = measure_router(
        lambda policy, seed: mix_by_query(STUDENT, TEACHER, policy, seed), cheaper, 0.0, SEEDS, is_matched=False
    )
    assert short.accuracy < 0.85


def test_router_asks_nobody_when_the_student_is_good_enough():
    matched = match_query_router(STUDENT, TEACHER, 0.4, SEEDS)
    assert (matched.probability, matched.teacher_token_share, matched.accuracy) == (0.0, 0.0, 0.4)


def test_router_says_so_when_not_even_the_teacher_is_good_enough():
    weak = alone([index < 200 for index in range(300)], is_teacher=True)
    matched = match_query_router(STUDENT, weak, 0.9, SEEDS)
    assert not matched.is_matched
    assert matched.probability == 1.0
    assert matched.teacher_token_share == 1.0


def test_results_of_different_prompts_are_refused():
    with pytest.raises(ValueError, match="not of the same prompts"):
        mix_by_query(STUDENT, EvalResult(TEACHER.completions[::-1]), RandomQueryPolicy(0.5), 0)
