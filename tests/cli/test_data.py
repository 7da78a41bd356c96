"""Data through the command line, by every way in: one sentence, before any model is loaded.

The model folder of these commands does not exist: a sentence about the data shows that they were read first.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NO_MODEL = "/no/where"
GOOD = "".join(json.dumps({"question": f"q{number}", "answer": str(number)}) + "\n" for number in range(4))
WAYS = [
    *(("fit", split) for split in ("train", "val", "test")),
    *(("validate", "val"), ("test", "test"), ("predict", "test"), ("filter", "data"), ("synthesize", "data")),
]


@pytest.fixture
def read(in_process, tmp_path: Path):
    """Runs a command that reads `source` by one way and good problems by the others."""
    (tmp_path / "good.jsonl").write_text(GOOD)

    def call(command: str, split: str, source: object, data: str = "PromptDataModule"):
        if command in ("filter", "synthesize"):
            model = "--teacher" if command == "filter" else "--student"
            return in_process(command, "--output", "out", "--data", source, "--num_problems", "null", model, NO_MODEL)
        module = "GRPOModule" if data == "PromptDataModule" else "WarmupModule"
        return in_process(
            *(command, "--run_dir", "run", "--model", module, "--model.student", NO_MODEL, "--model.teacher", "null"),
            *("--data", data, "--data.train", "good.jsonl", "--data.val", "good.jsonl", "--data.test", "good.jsonl"),
            *(f"--data.{split}", source),
        )

    return call


@pytest.mark.parametrize(("command", "split"), WAYS)
def test_bad_data_are_refused_before_any_model_is_loaded(read, tmp_path, command, split):
    (tmp_path / "bad.jsonl").write_bytes(GOOD.encode() + '{"question": "é"}'.encode("latin-1"))
    result = read(command, split, "bad.jsonl")
    assert result.exit_code == 2
    assert "bad.jsonl:5 is not UTF-8 text; what is read is JSONL" in result.sentence


@pytest.mark.parametrize(("command", "split"), [("fit", "train"), ("predict", "test"), ("filter", "data")])
def test_rows_that_cannot_be_read_are_counted_before_any_model_is_loaded(read, tmp_path, caplog, command, split):
    row = '{"question": %s, "answer": %s}\n'
    rows = [row % ('"a"', '"\\ud800"'), row % ('"b"', "null"), row % ('"\\ud800"', "1"), row % ('"c"', "NaN")]
    (tmp_path / "odd.jsonl").write_text("".join(rows) + GOOD)
    result = read(command, split, "odd.jsonl")
    assert result.exit_code == 2
    assert NO_MODEL in result.sentence
    assert "odd.jsonl: no answer that can be read (left out) in 3 of its rows, first in odd.jsonl:1" in caplog.text
    assert "no question that can be read (left out) in 1 of its rows, first in odd.jsonl:3" in caplog.text


@pytest.mark.parametrize(
    ("command", "split", "sentence"),
    [
        ("fit", "train", "data.train is null, but fit trains on it"),
        ("fit", "val", "data.val is null, but fit and validate measure on it"),
        ("fit", "test", "data.test is null, but test, predict and the report of fit need it"),
        ("validate", "train", NO_MODEL),
        ("test", "val", NO_MODEL),
        ("predict", "train", NO_MODEL),
        ("predict", "test", "data.test is null"),
    ],
)
def test_a_split_can_be_null_where_it_is_not_needed(read, command, split, sentence):
    result = read(command, split, "null")
    assert result.exit_code == 2
    assert sentence in result.sentence


def test_the_warm_up_needs_problems_to_train_on(read):
    assert "data.train is null, but fit trains on it" in read("fit", "train", "null", "WarmupDataModule").sentence


def test_fit_without_a_report_needs_no_test_split(in_process, tmp_path):
    (tmp_path / "good.jsonl").write_text(GOOD)
    result = in_process(
        *("fit", "--model", "GRPOModule", "--model.student", NO_MODEL, "--report.enabled", "false"),
        *("--data", "PromptDataModule", "--data.train", "good.jsonl", "--data.val", "good.jsonl"),
        *("--data.test", "null"),
    )
    assert NO_MODEL in result.sentence


@pytest.mark.parametrize("char", ["\x1b[2J", "\u202e", "\u2066"])
def test_what_others_wrote_reaches_the_terminal_escaped_and_shortened(read, tmp_path, char):
    (tmp_path / "bad.jsonl").write_text(json.dumps({f"a{char}b": 1, "answer": "2"}) + "\n")
    for source in ("bad.jsonl", f"no{char}where.jsonl", "{path: bad.jsonl, question: %s}" % ("x" * 100_000)):
        result = read("filter", "data", source)
        assert result.exit_code == 2
        assert result.errors.replace("\n", "").isprintable()
        assert len(result.sentence) < 2500


def test_a_wrong_value_of_a_configuration_is_shortened(in_process, tmp_path):
    (tmp_path / "large.yaml").write_text(f"num_samples: {'x' * 1_000_000}\n")
    result = in_process("filter", "--config", "large.yaml", "--output", "out")
    assert result.exit_code == 2
    assert "num_samples" in result.sentence
    assert len(result.sentence) < 2500
