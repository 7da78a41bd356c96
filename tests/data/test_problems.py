"""What the data modules say of their problems."""

from __future__ import annotations

import json
from pathlib import Path

from relay_lightning.data.prompts import PromptDataModule
from relay_lightning.data.source import DataSource


def write_questions(path: Path, *questions: str) -> str:
    path.write_text("".join(json.dumps({"question": text, "answer": "1"}) + "\n" for text in questions))
    return str(path)


def data_module(**sources: str | DataSource) -> PromptDataModule:
    return PromptDataModule(**sources, num_train_problems=None, num_val_problems=None, num_test_problems=None)


def test_held_out_questions_that_are_trained_on_are_counted_when_both_are_read(tmp_path, caplog) -> None:
    train = write_questions(tmp_path / "train.jsonl", "a", "b", "c")
    val = write_questions(tmp_path / "val.jsonl", "d", " a\n")
    test = write_questions(tmp_path / "test.jsonl", "b", "e", "c")
    data = data_module(train=train, val=val, test=test)
    data.setup("fit")
    assert [record.message for record in caplog.records] == [
        f"1 of the 2 problems of data.val ({val}) are also in data.train ({train}): what is measured on them was "
        "trained on."
    ]
    caplog.clear()
    data.setup("test")
    assert [record.message[:49] for record in caplog.records] == ["2 of the 3 problems of data.test (" + test[:15]]
    caplog.clear()
    data.setup("fit")
    data.setup("test")
    assert not caplog.records


def test_nothing_is_said_when_no_question_is_shared(tmp_path, caplog) -> None:
    train, val = (write_questions(tmp_path / f"{name}.jsonl", f"{name}?") for name in ("train", "val"))
    data_module(train=train, val=DataSource(val)).setup("fit")
    assert not caplog.records


def test_the_embedded_world_never_shares_a_question_between_its_splits(caplog) -> None:
    PromptDataModule(num_train_problems=2000, num_val_problems=500).setup("fit")
    assert not caplog.records
