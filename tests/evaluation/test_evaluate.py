"""Evaluation and routers on real decoding of the small pair."""

from __future__ import annotations

import pytest

from relay_lightning.evaluation.evaluate import evaluate
from relay_lightning.evaluation.relay_report import HeldOut, measure_after, measure_before, measure_routers
from relay_lightning.evaluation.routers import mix_by_query
from relay_lightning.relay.requests import CallLimits


@pytest.fixture(scope="module")
def held_out(small_pair) -> HeldOut:
    from relay_lightning.data.chat_template import make_prompt
    from relay_lightning.data.records import load_problems
    from relay_lightning.models.loading import load_tokenizer
    from relay_lightning.pair import load_relay

    relay = load_relay(small_pair.student, small_pair.teacher, max_num_seqs=8)
    tokenizer = load_tokenizer(small_pair.student)
    prompts = [
        make_prompt(tokenizer, row.problem_id, row.question, row.answer) for row in load_problems(small_pair.problems)
    ]
    return HeldOut(relay.engine, prompts, 32, CallLimits(max_calls=1, max_call_tokens=4))


def test_routed_queries_are_decoded_exactly_as_by_their_writer_alone(held_out):
    from relay_lightning.relay.policies import RandomQueryPolicy

    student, teacher = held_out.measure("", "teacher_free"), held_out.measure("", "teacher_only")
    for seed in range(3):
        policy = RandomQueryPolicy(0.5)
        assert held_out.measure("", policy, seed) == mix_by_query(student, teacher, policy, seed)


def test_writers_alone_have_call_ratios_of_nothing_and_everything(held_out):
    assert held_out.measure("", "teacher_free").call_ratio == 0.0
    teacher = held_out.measure("", "teacher_only")
    assert teacher.call_ratio == 1.0
    assert teacher.num_problems == 8


def test_every_figure_of_the_report_is_measured(held_out):
    before, after = measure_before(held_out, sampled=True), measure_after(held_out, sampled=True)
    assert before["student_alone"] == after["teacher_free_after"]  # the student has not been trained in between
    assert before["relay_before"] == after["relay_after"]
    assert before["relay_before_sampled"] == after["relay_after_sampled"]
    assert after["relay_after_sampled"] != after["relay_after"]
    routers = measure_routers(held_out, before | after, seeds=range(2))
    matched = routers["random_query_router_matched"]
    assert matched == routers["random_query_router_matched_untrained"]
    assert not matched.is_matched or matched.accuracy >= after["relay_after"].accuracy
    assert routers["random_token_router_same_budget"].probability == after["relay_after"].call_ratio


def test_token_router_keeps_to_its_budget(held_out):
    from relay_lightning.relay.policies import RandomTokenPolicy

    policy = RandomTokenPolicy(n=1, p=0.3)
    judged = [row for seed in range(10) for row in held_out.measure("", policy, seed).completions]
    num_tokens = sum(row.num_tokens for row in judged)
    deviation = (0.3 * 0.7 / num_tokens) ** 0.5
    assert sum(row.num_teacher_tokens for row in judged) / num_tokens == pytest.approx(0.3, abs=4 * deviation)


def test_several_samples_of_a_prompt_stand_in_a_row(held_out):
    from relay_lightning.engine.sampling import SamplingParams

    result = evaluate(held_out.engine, held_out.prompts, SamplingParams(32), "teacher_free", num_samples=3)
    assert [row.prompt_id for row in result.completions] == [index for index in range(8) for _ in range(3)]
    assert result.num_problems == 8
    lengths = [row.num_tokens for row in result.completions]
    assert any(len(set(lengths[start : start + 3])) > 1 for start in range(0, 24, 3))  # samples, not copies


def test_prompts_without_an_answer_are_refused(held_out):
    from dataclasses import replace

    nameless = [replace(prompt, answer=None) for prompt in held_out.prompts]
    with pytest.raises(ValueError, match="8 prompts have no answer"):
        evaluate(held_out.engine, nameless, None)


def test_a_measurement_gives_the_memory_of_keys_and_values_back(held_out):
    engine = held_out.engine
    engine.acquire()
    held_out.measure("", "command")
    assert engine.stats.num_teacher_tokens > 0
    assert engine._runner.cache.num_bytes == engine.teacher.runner.cache.num_bytes == 0
