"""Fixtures that several rooms share."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported: the workers share the cores


@dataclass(frozen=True, slots=True)
class SmallPair:
    """Two Hugging Face folders of minute Qwen3 models, and problems for them.

    Sampled at temperature 1, the student writes a few digits, calls now and then, and puts some digit in a box; the
    teacher does the same without calling. So all cases of the reward occur, and nothing takes longer than it must.
    """

    student: str
    teacher: str
    problems: str
    """A JSONL file: questions of little sense, answers of one digit."""


@pytest.fixture(scope="session")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> SmallPair:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from relay_lightning.tiny.tokenizer import chat_text, save_tokenizer, train_tokenizer
    from relay_lightning.tiny.training import Sample, Schedule, train

    folder = tmp_path_factory.mktemp("small-pair")
    tokenizer = train_tokenizer()
    end_of_turn = tokenizer.token_to_id("<|im_end|>")
    config = Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=end_of_turn,
        bos_token_id=None,
        dtype="float32",
    )
    schedule = Schedule(num_steps=120, batch_size=8, peak_lr=2e-2, num_warmup_steps=10)
    questions = [f"How many {word}?" for word in ("kebu", "lomi", "tari", "nasu", "vedi", "gapo", "buna", "suri")]

    def draw(rng: random.Random, write: Callable[[random.Random], str]) -> Sample:
        prompt = tokenizer.encode(chat_text(rng.choice(questions))).ids
        return Sample(prompt, [*tokenizer.encode(write(rng)).ids, end_of_turn])

    for name, write in (("student", _calling_text), ("teacher", _plain_text)):
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(config)
        rng = random.Random(name)
        train(model, lambda count, rng=rng, write=write: [draw(rng, write) for _ in range(count)], schedule, 0, name)
        model.save_pretrained(folder / name)
        save_tokenizer(tokenizer, folder / name)
    rows = [{"question": question, "answer": str(number % 3 + 1)} for number, question in enumerate(questions)]
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SmallPair(str(folder / "student"), str(folder / "teacher"), str(problems))


@pytest.fixture(scope="session")
def byte_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of an untrained model whose every token is one byte."""
    from byte_model import save_byte_model

    folder = tmp_path_factory.mktemp("byte-teacher")
    save_byte_model(folder)
    return str(folder)


def _plain_text(rng: random.Random) -> str:
    digits = "".join(rng.choice("123") for _ in range(rng.randint(2, 6)))
    return f"{digits}. The answer is \\boxed{{{rng.choice('123')}}}."


def _calling_text(rng: random.Random) -> str:
    text = _plain_text(rng)
    return f"<call>{rng.randint(1, 4)}</call>{text}" if rng.random() < 0.5 else text
