"""The engine's bookkeeping, on models without weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fake_model import FakeModel, Script, UniformEngine, relay_engine, scripted_bias
from small_vocabulary import EOS, FIRST_LETTER, VOCAB_SIZE, small_protocol, spell
from torch import Tensor

from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.relay.accounting import call_ratio
from relay_lightning.relay.policies import (
    EntropyPolicy,
    FixedPolicy,
    MarginPolicy,
    Policy,
    RandomQueryPolicy,
    RandomTokenPolicy,
)
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.types import Completion, FinishReason, Prompt, TokenSource

X, Y, Z = FIRST_LETTER, FIRST_LETTER + 1, FIRST_LETTER + 2
GREEDY = SamplingParams(max_completion_tokens=24, temperature=0.0)
SAMPLED = SamplingParams(max_completion_tokens=24, temperature=1.0)


def hashed_logits(context: tuple[int, ...]) -> Tensor:
    """Logits that depend on the whole context and on nothing else; the text never ends by itself."""
    seed = int.from_bytes(hashlib.sha256(bytes(context)).digest()[:6], "big")
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) + scripted_bias(None, VOCAB_SIZE)


def always(token: int) -> Callable[[tuple[int, ...]], Tensor]:
    return lambda _: scripted_bias(token, VOCAB_SIZE)


ALWAYS_Y = always(Y)


def follow(script: Script, default: int = X) -> Callable[[tuple[int, ...]], Tensor]:
    """Logits that want what the script says, and `default` where it says nothing."""

    def logits(context: tuple[int, ...]) -> Tensor:
        token = script(context)
        return scripted_bias(default if token is None else token, VOCAB_SIZE)

    return logits


def writes(*lines: tuple[int, str]) -> Script:
    """A student with a prompt of one token that writes each text at its position in the completion."""
    forced = {start + index: token for start, text in lines for index, token in enumerate(spell(text))}
    return lambda context: forced.get(len(context) - 1)


def build(
    student: Callable[[tuple[int, ...]], Tensor] = hashed_logits,
    teacher: Callable[[tuple[int, ...]], Tensor] = ALWAYS_Y,
    *,
    max_num_seqs: int = 4,
    steps_per_sync: int = 1,
    student_context: int = 1000,
    teacher_context: int = 1000,
) -> UniformEngine:
    return relay_engine(
        FakeModel(student, vocab_size=VOCAB_SIZE, max_context=student_context),
        FakeModel(teacher, vocab_size=VOCAB_SIZE, max_context=teacher_context),
        small_protocol(),
        max_num_seqs=max_num_seqs,
        steps_per_sync=steps_per_sync,
    )


def requests(count: int, samples: int = 1, length: int = 3) -> list[RelayRequest]:
    prompts = [Prompt(index, (2 + index, *[Z] * (length - 1))) for index in range(count)]
    return [RelayRequest(prompt, sample_index=sample) for prompt in prompts for sample in range(samples)]


ONE = [RelayRequest(Prompt(0, (Z,)))]


def test_completions_come_in_the_order_of_the_requests_when_there_are_more_than_slots():
    progress: list[int] = []
    completions = build(max_num_seqs=3).decode(requests(10), SAMPLED, on_progress=progress.append)
    assert [completion.prompt_id for completion in completions] == list(range(10))
    assert progress[-1] == 10
    assert progress == sorted(set(progress))


@pytest.mark.parametrize("policy", ["command", RandomTokenPolicy(n=2, p=0.2), RandomQueryPolicy(0.4)])
def test_samples_do_not_depend_on_the_number_of_slots(policy: str | Policy):
    def generate(max_num_seqs: int) -> list[Completion]:
        engine = build(hashed_logits, hashed_logits, max_num_seqs=max_num_seqs)
        return engine.decode(requests(9, samples=2), SAMPLED, seed=5, policy=policy)

    one, three, many = generate(1), generate(3), generate(64)
    assert one == three == many
    assert one[0].token_ids != one[1].token_ids
    assert [completion.token_ids for completion in one] != [
        completion.token_ids for completion in build().decode(requests(9, samples=2), SAMPLED, seed=6)
    ]


def test_looking_rarely_changes_nothing():
    often, rarely = (build(hashed_logits, hashed_logits, steps_per_sync=count) for count in (1, 5))

    policy = FixedPolicy(n=3, every=4)
    expected = often.decode(requests(7), SAMPLED, policy=policy)
    assert rarely.decode(requests(7), SAMPLED, policy=policy) == expected


def test_each_token_is_read_once_however_often_control_changes_hands():
    engine = build(always(X), always(Y))
    (completion,) = engine.decode(ONE, GREEDY, policy=FixedPolicy(n=2, every=3))
    assert completion.num_calls == 5
    # The student reads its prompt and all but the last token; the teacher never reads what comes after its last span.
    assert engine.student.num_fed_tokens == 1 + completion.num_tokens - 1
    assert engine.teacher.model.num_fed_tokens == 1 + completion.spans[-1].stop - 1


def test_prompt_is_read_once_for_all_its_samples():
    engine = build(always(X), always(Y), max_num_seqs=8)
    engine.decode(requests(2, samples=4, length=50), GREEDY, policy=FixedPolicy(n=1, every=4))
    num_tokens = 8 * GREEDY.max_completion_tokens
    # Shared: the 49 tokens before the last one of each prompt. Not shared: the last one, which yields the first logits.
    assert engine.student.num_fed_tokens == 2 * 49 + 8 + num_tokens - 8
    # The teacher is first asked behind four more tokens, which are equal too.
    assert engine.stats.num_shared_prefill_tokens == 2 * 3 * 49 + 2 * 3 * 53


def test_prompt_is_read_again_only_when_no_slot_holds_it():
    engine = build(always(X), max_num_seqs=2)
    engine.decode(requests(1, samples=6, length=50), GREEDY, policy="teacher_free")
    assert engine.student.num_fed_tokens == 49 + 6 + 6 * (GREEDY.max_completion_tokens - 1)


def test_tag_in_the_prompt_is_text():
    prompt = Prompt(0, tuple(spell("<call>9")))
    (completion,) = build(follow(lambda c: spell("</call>")[0] if len(c) == 2 else None)).decode(
        [RelayRequest(prompt)], GREEDY
    )
    assert completion.num_calls == 0


def test_tag_that_begins_before_a_span_does_not_end_after_it():
    # The teacher is handed over to by a policy in the middle of a tag; afterwards the automaton starts afresh.
    engine = build(follow(writes((0, "<call>"), (3, "7</call>"))))
    (completion,) = engine.decode(ONE, GREEDY, policy=FixedPolicy(n=2, every=1), max_calls=1)
    assert completion.num_calls == 1
    engine = build(follow(writes((0, "<call>2</call><call>"), (6, "7</call>"))))
    (completion,) = engine.decode(ONE, GREEDY)
    assert [span.num_requested_tokens for span in completion.spans] == [2]


def test_teacher_sees_everything_but_the_commands():
    engine = build(follow(writes((0, "ac<call>2</call>"), (7, "xyz<call>1</call>"))), max_num_seqs=1)
    (completion,) = engine.decode(ONE, GREEDY)
    (seen,) = engine.teacher.model.contexts.values()
    assert seen == [Z, *spell("ac"), Y, Y, *spell("xyz")]
    assert [(span.command_start, span.start, span.stop) for span in completion.spans] == [(2, 5, 7), (10, 13, 14)]


def test_spans_are_clipped_to_max_call_tokens_and_say_what_was_asked():
    (completion,) = build(follow(writes((0, "<call>12</call>")))).decode(ONE, GREEDY, max_call_tokens=4)
    (span,) = completion.spans
    assert (span.num_tokens, span.num_requested_tokens, span.finish_reason) == (4, 12, FinishReason.DELIVERED)


@pytest.mark.parametrize(
    ("n", "delivered", "reason"), [(99, 21, FinishReason.LENGTH), (21, 21, FinishReason.DELIVERED)]
)
def test_span_ends_with_the_budget(n: int, delivered: int, reason: FinishReason):
    command = f"<call>{n}</call>"
    budget = SamplingParams(max_completion_tokens=len(spell(command)) + 21, temperature=0.0)
    (completion,) = build(follow(writes((0, command)))).decode(ONE, budget)
    assert (completion.spans[0].num_tokens, completion.spans[0].finish_reason) == (delivered, reason)
    assert completion.finish_reason == FinishReason.LENGTH


def test_teacher_eos_finishes_or_returns_by_policy():
    teacher = follow(lambda context: EOS if len(context) == 3 else Y)
    student = follow(writes((0, "<call>9</call>")))
    (finished,) = build(student, teacher).decode(ONE, GREEDY)
    assert finished.finish_reason == FinishReason.TEACHER_STOP
    assert finished.token_ids == [*spell("<call>9</call>"), Y, Y, EOS]
    assert finished.token_source[-1] == TokenSource.TEACHER
    (returned,) = build(student, teacher).decode(ONE, GREEDY, eos_policy="return")
    assert returned.token_ids == [*spell("<call>9</call>"), Y, Y, *[X] * 19]
    assert returned.spans[0].finish_reason == FinishReason.TEACHER_STOP
    assert returned.finish_reason == FinishReason.LENGTH


@pytest.mark.parametrize(
    "policy", [FixedPolicy(n=3, every=1), RandomTokenPolicy(n=3, p=1.0), EntropyPolicy(n=3, threshold=0.0)]
)
def test_policy_cannot_ask_forever_when_the_teacher_ends_at_once(policy: Policy):
    (completion,) = build(teacher=always(EOS)).decode(ONE, GREEDY, policy=policy, eos_policy="return")
    assert completion.num_tokens == GREEDY.max_completion_tokens
    assert completion.num_teacher_tokens == 0
    assert completion.num_calls > 0


def test_student_context_ends_the_completion():
    (completion,) = build(always(X), student_context=10).decode(ONE, GREEDY, policy="teacher_free")
    assert (completion.num_tokens, completion.finish_reason) == (9, FinishReason.LENGTH)


def test_teacher_context_ends_the_completion():
    engine = build(follow(writes((0, "xx<call>9</call>"))), teacher_context=7)
    (completion,) = engine.decode(ONE, GREEDY)
    (span,) = completion.spans
    assert (span.num_tokens, span.finish_reason) == (4, FinishReason.LENGTH)
    assert completion.finish_reason == FinishReason.LENGTH
    # A full context when the call is made: nothing is delivered, and there is no span.
    (completion,) = build(follow(writes((0, "yyyyyyyy<call>9</call>"))), teacher_context=7).decode(ONE, GREEDY)
    assert (completion.num_tokens, completion.spans) == (8 + 3, [])
    assert completion.finish_reason == FinishReason.LENGTH


def test_a_command_is_text_where_the_student_is_alone():
    student = follow(writes((0, "<call>3</call>")))
    (completion,) = build(student).decode(ONE, GREEDY, policy="teacher_free")
    assert (completion.num_calls, completion.num_malformed_calls) == (0, 0)
    assert completion.text.startswith("<call>3</call>x")
    assert set(completion.token_source) == {TokenSource.STUDENT}


def test_no_command_is_completed_or_begun_where_that_is_masked():
    student = follow(writes((0, "<call>3</call>")))
    (completion,) = build(student).decode(ONE, GREEDY, policy="teacher_free", spent_calls="mask_close")
    assert spell("</call>")[0] not in completion.token_ids
    assert completion.num_malformed_calls == 1
    (completion,) = build(student).decode(ONE, GREEDY, policy="teacher_free", spent_calls="mask_open")
    assert spell("<call>")[0] not in completion.token_ids
    assert completion.num_malformed_calls == 0


@pytest.mark.parametrize("policy", ["teacher_only", RandomQueryPolicy(1.0)])
def test_teacher_only_never_asks_the_student(policy: str | Policy):
    teacher = follow(lambda context: EOS if len(context) == 9 else Y)
    engine = build(teacher=teacher)
    (completion,) = engine.decode(ONE, GREEDY, policy=policy, max_calls=0, max_call_tokens=1, eos_policy="return")
    assert completion.token_ids == [*[Y] * 8, EOS]
    assert completion.call_ratio == 1.0
    assert completion.finish_reason == FinishReason.TEACHER_STOP
    assert engine.student.num_fed_tokens == 0


def test_random_query_gives_a_share_of_the_queries_to_the_teacher():
    completions = build(always(X)).decode(requests(30, samples=10), GREEDY, policy=RandomQueryPolicy(0.3))
    share = sum(completion.call_ratio for completion in completions) / 300
    assert {completion.call_ratio for completion in completions} == {0.0, 1.0}
    assert share == pytest.approx(0.3, abs=0.1)


def test_random_policy_has_a_name():
    completions = build(always(X)).decode(requests(30), GREEDY, policy="random")
    assert 5 < sum(completion.call_ratio for completion in completions) < 25


def test_random_token_hands_over_as_often_as_asked():
    policy = RandomTokenPolicy(n=1, p=0.25)
    completions = build(always(X)).decode(requests(20, samples=10), GREEDY, policy=policy)
    # Each token of the student follows the end of a run of hand-overs: the teacher's share is p.
    assert call_ratio(completions) == pytest.approx(0.25, abs=0.03)


def test_entropy_and_margin_hand_over_where_the_student_is_unsure():
    def unsure_at_5(context: tuple[int, ...]) -> Tensor:
        return torch.zeros(VOCAB_SIZE) if len(context) == 5 else scripted_bias(X, VOCAB_SIZE)

    for policy in (EntropyPolicy(n=2, threshold=1.0), MarginPolicy(n=2, threshold=0.5)):
        (completion,) = build(unsure_at_5).decode(ONE, GREEDY, policy=policy)
        assert completion.token_ids == [X] * 4 + [Y] * 2 + [X] * 18
        (span,) = completion.spans
        assert span.num_command_tokens == 0


def test_max_calls_holds_for_policies_too():
    (completion,) = build(always(X)).decode(ONE, GREEDY, policy=FixedPolicy(n=2, every=2), max_calls=3)
    assert completion.num_calls == 3


def test_stats_add_up():
    engine = build(follow(writes((2, "<call>3</call>"), (9, "<call>2</call>"))), max_num_seqs=2)
    completions = engine.decode([RelayRequest(Prompt(index, (Z,))) for index in range(5)], GREEDY)
    stats = engine.stats
    assert stats.num_completions == 5
    assert stats.num_tokens == sum(completion.num_tokens for completion in completions) == 5 * 24
    assert (stats.num_calls, stats.num_teacher_tokens, stats.num_requested_tokens) == (10, 25, 25)
    assert stats.num_command_tokens == 10 * len(spell("<call>3</call>"))
    assert stats.call_ratio == call_ratio(completions) == 25 / 120
    assert stats.num_teacher_prefill_tokens + 25 - 10 == engine.teacher.model.num_fed_tokens
    assert stats.num_student_prefill_tokens + stats.num_student_tokens - 10 - 5 == engine.student.num_fed_tokens
    phases = (stats.student_s, stats.teacher_s, stats.prefill_s, stats.host_s)
    assert min(phases) > 0
    assert sum(phases) == pytest.approx(stats.wall_s)
    assert (stats + stats).num_tokens == 2 * stats.num_tokens


def test_text_is_that_of_the_tokens_without_special_ones():
    student = follow(lambda context: EOS if len(context) == 4 else None)
    (completion,) = build(student).decode(ONE, GREEDY)
    assert completion.text == "xxx"
    assert completion.finish_reason == FinishReason.STOP
    assert completion.token_ids[-1] == EOS


@pytest.mark.parametrize("failing", ["student", "teacher"])
@pytest.mark.parametrize("method", ["extend", "step"])
@pytest.mark.parametrize("num_good_passes", [0, 1, 5])
def test_requests_go_on_as_if_nothing_had_been_when_a_pass_fails(
    monkeypatch: pytest.MonkeyPatch, failing: str, method: str, num_good_passes: int
):
    def asked(length: int) -> list[RelayRequest]:
        policy = FixedPolicy(n=2, every=3)
        return [replace(each, sampling=SAMPLED, policy=policy) for each in requests(3, samples=2, length=length)]

    expected = build(hashed_logits, hashed_logits).generate(asked(40))
    engine = build(hashed_logits, hashed_logits)
    model, num_passes = engine.student if failing == "student" else engine.teacher.model, 0
    run = getattr(model, method)

    def fail_once(*arguments: object) -> object:
        nonlocal num_passes
        num_passes += 1
        if num_passes == num_good_passes + 1:
            raise ValueError("a pass failed")
        return run(*arguments)

    monkeypatch.setattr(model, method, fail_once)
    ids = [engine.add_request(request) for request in asked(40)]
    with pytest.raises(ValueError, match="a pass failed"):
        engine.generate(asked(40))
    completions = {}
    while engine.has_unfinished:
        completions |= {output.request_id: output.completion for output in engine.step() if output.is_finished}
    assert [completions[request_id] for request_id in ids] == expected
    assert engine.generate(asked(40)) == expected


def test_requests_in_flight_are_finished_for_step_when_a_generate_comes_between():
    engine = build(hashed_logits, hashed_logits)
    expected = build(hashed_logits, hashed_logits).generate(requests(3))
    ids = [engine.add_request(request) for request in requests(3)]
    outputs = engine.step()
    assert engine.generate(requests(3)) == expected
    assert engine.is_in_flight(ids[0]), "its end has not been told"
    while engine.has_unfinished:
        outputs += engine.step()
    for request_id, completion in zip(ids, expected, strict=True):
        own = [output for output in outputs if output.request_id == request_id]
        assert [token for output in own for token in output.token_ids] == completion.token_ids
        assert [output.completion for output in own if output.is_finished] == [completion]


def test_no_requests_give_no_completions():
    assert build().decode([], GREEDY) == []


def test_bad_arguments_are_named():
    engine = build(student_context=8, teacher_context=5)
    with pytest.raises(ValueError, match="prompt 77 has 8 tokens and leaves no room in the student's context of 8"):
        engine.decode([RelayRequest(Prompt(77, (X,) * 8))], GREEDY)
    with pytest.raises(ValueError, match="prompt 3 has 6 tokens and leaves no room in the teacher's context of 5"):
        engine.decode([RelayRequest(Prompt(3, (X,) * 6))], GREEDY)
    with pytest.raises(ValueError, match="prompt 3 is empty"):
        engine.decode([RelayRequest(Prompt(3, ()))], GREEDY)
    with pytest.raises(ValueError, match="policy='sometimes' is unknown"):
        engine.decode(ONE, GREEDY, policy="sometimes")
    with pytest.raises(ValueError, match="max_calls"):
        engine.decode(ONE, GREEDY, max_calls=-1)
    with pytest.raises(ValueError, match="max_call_tokens"):
        engine.decode(ONE, GREEDY, max_call_tokens=0)
    with pytest.raises(ValueError, match="eos_policy='never'"):
        engine.decode(ONE, GREEDY, eos_policy="never")  # type: ignore[arg-type]
    alone = relay_engine(engine.student, None, small_protocol())
    with pytest.raises(ValueError, match="CommandPolicy needs a teacher"):
        alone.decode(ONE, GREEDY)
    assert alone.decode(ONE, GREEDY, policy="teacher_free")
    with pytest.raises(ValueError, match="compiled for 33 token ids"):
        relay_engine(FakeModel(hashed_logits, vocab_size=50), None, small_protocol())


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"min_p": 2.0}, {"max_completion_tokens": 0}]
)
def test_bad_sampling_parameters_are_named(bad: dict[str, float]):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SamplingParams(**bad)
