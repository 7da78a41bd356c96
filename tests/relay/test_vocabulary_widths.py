"""One tokenizer, models of different width: no id is drawn that the tokenizer or the other model lacks."""

from __future__ import annotations

import pytest
import torch
from fake_model import Script, ScriptedModel, UniformEngine, relay_engine
from naive_relay import naive_relay
from random_models import random_model
from small_vocabulary import FIRST_LETTER, VOCAB_SIZE, VOCABULARY, spell
from transformers import PreTrainedModel

from relay_lightning.engine.local import LocalModel
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.modules.log_probs import token_log_probs
from relay_lightning.relay.bridge import TextBridge
from relay_lightning.relay.policies import EntropyPolicy, FixedPolicy, RandomTokenPolicy
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.relay.requests import RelayRequest
from relay_lightning.relay.vocabulary import Vocabulary
from relay_lightning.types import Completion, Prompt, TokenSource

WIDTHS = [(0, 0), (0, 9), (9, 0), (5, 9), (9, 5), (-1, 6), (6, -1)]
"""Rows that student and teacher have beyond the tokenizer's ids; below zero, ids that they lack."""
BUDGET = 24
PROMPTS = [Prompt(0, (FIRST_LETTER, FIRST_LETTER + 1)), Prompt(1, (FIRST_LETTER,) * 7)]
LOG_PROB_TOLERANCE = {"rtol": 0.0, "atol": 1e-4}


def vocabulary(width: int) -> Vocabulary:
    """Of a tokenizer that names the ids of `VOCABULARY`, for a model of that width."""
    padded = [*VOCABULARY[:width], *[None] * (width - VOCAB_SIZE)]
    return Vocabulary(padded, num_token_ids=min(VOCAB_SIZE, width))


def wide_model(num_extra: int, seed: int) -> PreTrainedModel:
    """A model whose rows beyond the tokenizer are more probable than the others."""
    model = random_model("llama", VOCAB_SIZE + num_extra, seed=seed)
    with torch.no_grad():
        model.get_output_embeddings().weight[VOCAB_SIZE:] *= 2.0
        model.get_output_embeddings().weight[VOCAB_SIZE - 3 :] *= 1.5
    return model


def engine(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    *,
    has_bridge: bool = False,
    student_script: Script | None = None,
) -> UniformEngine:
    """student_script: forces the student; both models then end their texts only where a script says so."""
    protocol = CallProtocol().compile_vocabulary(vocabulary(student.config.vocab_size))
    bridge = None
    if has_bridge:
        other = vocabulary(teacher.config.vocab_size)
        bridge = TextBridge(protocol.vocabulary, other, lambda prompt: prompt.token_ids)
    models = [LocalModel(student), LocalModel(teacher) if teacher else None]
    if student_script is not None:
        models = [ScriptedModel(models[0], student_script), ScriptedModel(models[1], lambda _: None)]
    return relay_engine(*models, protocol, bridge=bridge)


def requests(num_samples: int = 4) -> list[RelayRequest]:
    return [RelayRequest(prompt, sample_index=sample) for prompt in PROMPTS for sample in range(num_samples)]


def writers_log_probs(model: PreTrainedModel, prompt: Prompt, completion: Completion, temperature: float):
    """Of every completion token under `model`, over all of its logits."""
    token_ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]])
    mask = torch.arange(token_ids.shape[1])[None] >= len(prompt.token_ids)
    with torch.no_grad():
        return token_log_probs(model, token_ids, mask, temperature).log_probs[0, len(prompt.token_ids) :]


@pytest.mark.parametrize("policy", ["teacher_only", RandomTokenPolicy(p=0.4, n=3), EntropyPolicy(threshold=1.0, n=2)])
@pytest.mark.parametrize("widths", WIDTHS)
def test_every_id_is_one_that_all_know_and_log_probs_are_the_trainers(widths, policy):
    student, teacher = wide_model(widths[0], 0), wide_model(widths[1], 1)
    sampling = SamplingParams(max_completion_tokens=BUDGET, temperature=0.7)
    completions = engine(student, teacher).decode(requests(), sampling, policy=policy)
    num_shared = VOCAB_SIZE + min(*widths, 0)
    for request, completion in zip(requests(), completions, strict=True):
        assert max(completion.token_ids) < num_shared
        assert min(completion.token_ids) >= 0
        is_student = torch.tensor([source == TokenSource.STUDENT for source in completion.token_source])
        found = torch.tensor(completion.log_probs)
        expected = writers_log_probs(student, request.prompt, completion, 0.7)
        torch.testing.assert_close(found[is_student], expected[is_student], **LOG_PROB_TOLERANCE)
        if policy == "teacher_only":
            expected = writers_log_probs(teacher, request.prompt, completion, 0.7)
            torch.testing.assert_close(found, expected, **LOG_PROB_TOLERANCE)


@pytest.mark.parametrize("widths", WIDTHS)
def test_greedy_decoding_equals_the_naive_loop_when_ids_are_out_of_bounds(widths):
    student, teacher = wide_model(widths[0], 0), wide_model(widths[1], 1)
    command = spell("<call>5</call>")
    start = len(PROMPTS[0].token_ids)

    def student_script(context: tuple[int, ...]) -> int | None:
        position = len(context) - start - 3
        return command[position] if 0 <= position < len(command) else None

    relay = engine(student, teacher, student_script=student_script)
    sampling = SamplingParams(max_completion_tokens=BUDGET, temperature=0.0)
    [completion] = relay.decode([RelayRequest(PROMPTS[0])], sampling)
    expected = naive_relay(
        student,
        teacher,
        relay.protocol,
        PROMPTS[0].token_ids,
        budget=BUDGET,
        student_script=student_script,
        teacher_script=lambda _: None,
        num_token_ids=VOCAB_SIZE + min(*widths, 0),
    )
    assert completion.token_ids == expected.token_ids
    assert completion.num_teacher_tokens > 0
    torch.testing.assert_close(completion.log_probs, expected.log_probs, **LOG_PROB_TOLERANCE)


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_student_alone_writes_what_its_tokenizer_names(widths):
    student, teacher = wide_model(widths[0], 0), wide_model(widths[1], 1)
    sampling = SamplingParams(max_completion_tokens=BUDGET)
    alone = engine(student, None).decode(requests(), sampling, policy="teacher_free")
    beside = engine(student, teacher).decode(requests(), sampling, policy="teacher_free")
    if widths[1] >= 0:  # Beside a teacher that lacks ids, a student draws none of these.
        assert alone == beside
    assert max(drawn(alone)) < VOCAB_SIZE + min(widths[0], 0)
    assert max(drawn(beside)) < VOCAB_SIZE + min(*widths, 0)


def drawn(completions: list[Completion]) -> set[int]:
    return {token for completion in completions for token in completion.token_ids}


def test_sampling_log_probs_are_those_of_the_ids_that_could_be_drawn():
    """The probabilities of what could be drawn sum to one."""
    student = wide_model(9, 0)
    [completion] = engine(student, None).decode(
        [RelayRequest(PROMPTS[0])], SamplingParams(max_completion_tokens=BUDGET), policy="teacher_free"
    )
    token_ids = torch.tensor([[*PROMPTS[0].token_ids, *completion.token_ids]])
    with torch.no_grad():
        logits = student(token_ids).logits[0, len(PROMPTS[0].token_ids) - 1 : -1, :VOCAB_SIZE]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(completion.sampling_log_probs), expected, **LOG_PROB_TOLERANCE)
    assert (torch.tensor(completion.log_probs) < expected - 0.01).all()


def test_over_a_bridge_each_side_is_bound_by_its_own_tokenizer():
    student, teacher = wide_model(6, 0), wide_model(9, 1)
    relay = engine(student, teacher, has_bridge=True)
    sampling = SamplingParams(max_completion_tokens=BUDGET)
    for completion in relay.decode(requests(), sampling, policy=FixedPolicy(n=4, every=3)):
        assert max(completion.token_ids) < VOCAB_SIZE


@pytest.mark.parametrize("token", [-1, VOCAB_SIZE + 5, 10**9])
def test_a_prompt_is_refused_when_a_model_has_no_row_for_its_ids(token):
    student, teacher = wide_model(9, 0), wide_model(5, 1)
    [request] = [RelayRequest(Prompt(7, (FIRST_LETTER, token)))]
    with pytest.raises(ValueError, match=f"prompt 7 holds token id {token}, and the .* vocabulary ends at"):
        engine(student, teacher).decode([request], SamplingParams())
    if token == VOCAB_SIZE + 5:  # the student has it
        engine(student, teacher).decode([request], SamplingParams(max_completion_tokens=2), policy="teacher_free")
