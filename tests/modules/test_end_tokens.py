"""Completions end at the end tokens of config, tokenizer and chat template, of student and teacher each."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from relay_lightning.data.sft import WarmupDataModule
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.modules.self_samples import read_self_samples
from relay_lightning.modules.warmup import WarmupModule
from relay_lightning.pair import load_relay
from relay_lightning.types import FinishReason

QUESTION = "How many kebu?"
GREEDY = SamplingParams(max_completion_tokens=40, temperature=0.0)
END_OF_TEXT, END_OF_TURN = 0, 2


@pytest.fixture(scope="module")
def mislabelled(small_pair: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Copies of a model that ends its turns with <|im_end|>, whose configs say otherwise."""

    def make(name: str, *, eos_token: str, config_id: int | None, generation_ids: Any = None) -> str:
        folder = tmp_path_factory.mktemp("mislabelled") / name
        shutil.copytree(getattr(small_pair, name), folder)
        config = AutoConfig.from_pretrained(folder)
        config.eos_token_id = config_id
        config.save_pretrained(folder)
        GenerationConfig(eos_token_id=generation_ids or config_id).save_pretrained(folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": eos_token}))
        return str(folder)

    return make


@pytest.mark.parametrize("eos_token", ["<|im_end|>", "<|endoftext|>"])
def test_a_config_that_names_another_token_does_not_keep_a_completion_from_ending(mislabelled, eos_token) -> None:
    student = mislabelled("teacher", eos_token=eos_token, config_id=END_OF_TEXT)
    relay = load_relay(student, None, max_num_seqs=1)
    assert set(relay.engine.student.eos_token_ids) == {END_OF_TEXT, END_OF_TURN}
    [answer] = relay.generate([QUESTION], GREEDY, policy="teacher_free")
    assert answer.finish_reason == FinishReason.STOP
    assert answer.token_ids[-1] == END_OF_TURN
    assert answer.num_tokens < GREEDY.max_completion_tokens


def test_the_teacher_ends_by_its_own_tokenizer_and_the_template_it_reads(small_pair, mislabelled) -> None:
    teacher = mislabelled("teacher", eos_token="<|endoftext|>", config_id=END_OF_TEXT)
    settings = Path(teacher) / "tokenizer_config.json"
    bare = {key: value for key, value in json.loads(settings.read_text()).items() if key != "chat_template"}
    settings.write_text(json.dumps(bare))
    relay = load_relay(small_pair.student, teacher, max_num_seqs=1)
    assert relay.engine.teacher is not None
    assert set(relay.engine.teacher.model.eos_token_ids) == {END_OF_TEXT, END_OF_TURN}
    [answer] = relay.generate([QUESTION], GREEDY, policy="teacher_only")
    assert answer.finish_reason == FinishReason.TEACHER_STOP


def test_generation_config_and_config_are_both_in_force_and_foreign_ids_are_not(mislabelled) -> None:
    student = mislabelled("student", eos_token="<|im_end|>", config_id=7, generation_ids=[5, 10**6])
    assert load_relay(student, None, max_num_seqs=1).engine.student.eos_token_ids == (END_OF_TURN, 5, 7)


def test_the_tokens_in_force_are_said_when_the_engine_is_set_up(small_pair, mislabelled, caplog) -> None:
    with caplog.at_level(logging.INFO):
        load_relay(small_pair.student, mislabelled("teacher", eos_token="<|endoftext|>", config_id=0), max_num_seqs=1)
    said = [record.message for record in caplog.records if "stops at" in record.message]
    assert len(said) == 2
    assert said[0].endswith("stops at <|im_end|> (2).")
    assert said[1].endswith("stops at <|im_end|> (2), <|endoftext|> (0).")


def test_warm_up_trains_the_end_that_the_student_wrote_though_the_config_names_another(
    mislabelled, small_pair, make_trainer, tmp_path
) -> None:
    student = mislabelled("teacher", eos_token="<|endoftext|>", config_id=END_OF_TEXT)
    source = dict.fromkeys(("train", "val", "test"), small_pair.problems)
    data = WarmupDataModule(**source, batch_size=8)
    module = WarmupModule(student=student, teacher=None, max_completion_tokens=40, cache_dir=str(tmp_path / "cache"))
    trainer = make_trainer(1)
    trainer.fit(module, data)
    [file] = (tmp_path / "cache").glob("*.jsonl")
    ends = [sample.eos_token_id for sample in read_self_samples(file)]
    assert ends.count(END_OF_TURN) >= len(ends) - 1
    for batch in trainer.train_dataloader:
        for row, mask in zip(batch.token_ids, batch.loss_mask, strict=True):
            assert row[mask][-1] in (END_OF_TURN, END_OF_TEXT)
        break
