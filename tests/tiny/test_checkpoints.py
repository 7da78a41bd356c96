"""The packaged pair: what anyone who opens the folders may rely on."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import relay_lightning.tiny
from relay_lightning import load_relay
from relay_lightning.tiny.evaluate import accuracy_by_kind, commands_per_completion, generate_texts, oracle_hooks
from relay_lightning.tiny.task import generate_problems
from relay_lightning.tiny.tokenizer import INSTRUCTION, chat_text, train_tokenizer

FOLDER = Path(relay_lightning.tiny.__file__).parent / "checkpoints"
NAMES = ("student", "warm-student", "relay-student", "teacher")
TOKENIZER = train_tokenizer()
PROBLEMS = generate_problems("test", 60, seed=0)


@pytest.fixture(scope="module")
def models():
    return {name: AutoModelForCausalLM.from_pretrained(FOLDER / name) for name in NAMES}


def test_sizes_keep_their_limits(models):
    num_parameters = {
        name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()
    }
    assert num_parameters["student"] == num_parameters["warm-student"] == num_parameters["relay-student"] < 1_000_000
    assert num_parameters["student"] < num_parameters["teacher"] < 10_000_000
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 8_000_000


def test_weights_load_in_fp32(models):
    assert {model.dtype for model in models.values()} == {torch.float32}


@pytest.mark.parametrize("name", NAMES)
def test_saved_tokenizer_reads_and_writes_like_the_trained_one(name):
    saved = AutoTokenizer.from_pretrained(FOLDER / name)
    for problem in PROBLEMS:
        messages = [{"role": "user", "content": f"{problem.question}\n{INSTRUCTION}"}]
        text = saved.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, enable_thinking=False)
        assert text == chat_text(problem.question)
        assert saved.encode(text, add_special_tokens=False) == TOKENIZER.encode(text).ids
        assert saved.decode(TOKENIZER.encode(problem.solution).ids) == problem.solution
    assert saved.decode(saved.encode(" odd  ,text <call>7</call> ü")) == " odd  ,text <call>7</call> ü"
    assert saved.eos_token == "<|im_end|>"
    assert saved.pad_token == "<|endoftext|>"


def test_student_solves_its_own_kind_and_teacher_nearly_all_but_open(models):
    def accuracies(name: str) -> dict[str, float]:
        return accuracy_by_kind(
            PROBLEMS, TOKENIZER.decode_batch(generate_texts(models[name], TOKENIZER, PROBLEMS, 0.0))
        )

    student, teacher = accuracies("student"), accuracies("teacher")
    assert student["solo"] >= 0.9
    assert student["relay"] <= 0.15
    assert teacher["solo"] >= 0.9
    assert teacher["relay"] >= 0.9


def test_hidden_prices_are_all_that_the_student_lacks(models):
    completions = generate_texts(models["student"], TOKENIZER, PROBLEMS, 0.0, hooks=oracle_hooks(TOKENIZER))
    assert accuracy_by_kind(PROBLEMS, TOKENIZER.decode_batch(completions))["relay"] >= 0.85


def test_warm_student_writes_commands_when_sampled_and_keeps_its_skill(models):
    sampled = generate_texts(models["warm-student"], TOKENIZER, PROBLEMS, temperature=1.0)
    assert 0.3 <= commands_per_completion(TOKENIZER.decode_batch(sampled)) <= 2.0
    greedy = generate_texts(models["warm-student"], TOKENIZER, PROBLEMS, temperature=0.0)
    assert accuracy_by_kind(PROBLEMS, TOKENIZER.decode_batch(greedy))["solo"] >= 0.9


def test_relay_student_asks_for_as_many_tokens_as_it_uses_when_no_limit_binds():
    """The length of a call is the student's own: 40 problems, greedy, with and without the limit of its training."""
    relay = load_relay("tiny:relay-student", max_num_seqs=40)
    questions = [problem.question for problem in PROBLEMS[:40]]
    free = relay.generate(questions, max_call_tokens=None)
    spans = [span for completion in free for span in completion.spans]
    assert len(spans) >= 20
    assert all(span.num_tokens == span.num_requested_tokens for span in spans)
    assert sum(span.num_requested_tokens for span in spans) <= 4 * len(spans)
    assert [completion.token_ids for completion in relay.generate(questions)] == [each.token_ids for each in free]
    answers = [TOKENIZER.decode(completion.token_ids) for completion in free]
    assert accuracy_by_kind(PROBLEMS[:40], answers)["all"] >= 0.75


def test_teacher_goes_on_from_any_place_in_a_solution(models):
    problem = next(problem for problem in PROBLEMS if problem.kind == "relay")
    prompt, solution = TOKENIZER.encode(chat_text(problem.question)).ids, TOKENIZER.encode(problem.solution).ids
    token_ids = torch.tensor([prompt + solution])
    with torch.inference_mode():
        predicted = models["teacher"](input_ids=token_ids).logits[0].argmax(-1).tolist()
    assert predicted[len(prompt) - 1 : -1] == solution


@pytest.mark.slow
def test_the_pairs_gap_on_500_held_out_problems(models):
    problems = generate_problems("test", 500, seed=0)

    def accuracy(name: str) -> float:
        completions = generate_texts(models[name], TOKENIZER, problems, 0.0)
        return accuracy_by_kind(problems, TOKENIZER.decode_batch(completions))["all"]

    assert accuracy("student") <= 0.45
    assert accuracy("teacher") >= 0.90
