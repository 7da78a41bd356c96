"""The whole build, at a size that takes seconds: what it writes is what it trained."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from relay_lightning.tiny import build as build_module
from relay_lightning.tiny.build import Recipe, build, pretrain, save_model
from relay_lightning.tiny.task import STUDENT_MIX, TEACHER_MIX
from relay_lightning.tiny.tokenizer import chat_text, train_tokenizer
from relay_lightning.tiny.training import Schedule

SCHEDULE = Schedule(num_steps=2, batch_size=2, peak_lr=1e-3, num_warmup_steps=1)
STUDENT = Recipe(1, 32, 32, STUDENT_MIX, True, SCHEDULE)
TEACHER = Recipe(1, 64, 32, TEACHER_MIX, False, SCHEDULE)


@pytest.fixture
def small_recipes(monkeypatch):
    monkeypatch.setattr(build_module, "STUDENT", STUDENT)
    monkeypatch.setattr(build_module, "TEACHER", TEACHER)
    monkeypatch.setattr(build_module, "WARMUP_SCHEDULE", SCHEDULE)
    monkeypatch.setattr(build_module, "NUM_WARMUP_COMPLETIONS", 4)
    monkeypatch.setattr(build_module, "NUM_TEST_PROBLEMS", 20)  # one block: every kind occurs


def weights_of(folder) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.usefixtures("small_recipes")
def test_build_writes_three_models_and_prints_how_they_do(tmp_path, capsys):
    build(tmp_path, seed=0, has_bf16=False)
    assert {folder.name for folder in tmp_path.iterdir()} == {"student", "warm-student", "teacher"}
    printed = capsys.readouterr().out
    assert all(f"{name}, greedy: all" in printed for name in ("student", "warm-student", "teacher"))
    student, warm = weights_of(tmp_path / "student"), weights_of(tmp_path / "warm-student")
    assert any(not torch.equal(student[name], warm[name]) for name in student)


def test_same_seed_gives_the_same_weights_and_another_seed_others():
    tokenizer = train_tokenizer()

    def weights(seed: int) -> torch.Tensor:
        return pretrain(STUDENT, tokenizer, seed, "student").model.embed_tokens.weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_saved_weights_are_the_trained_ones_up_to_fp16(tmp_path):
    tokenizer = train_tokenizer()
    model = pretrain(TEACHER, tokenizer, 0, "teacher")
    save_model(model, tokenizer, tmp_path)
    token_ids = torch.tensor([tokenizer.encode(chat_text("Mia buys 2 kebu. How many coins does Mia pay?")).ids])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, saved in loaded.state_dict().items():
        assert torch.equal(saved, model.state_dict()[name].half().float()), name
    with torch.inference_mode():
        assert torch.allclose(loaded(token_ids).logits, model(token_ids).logits, atol=1e-2)
