"""What commands write: nothing that is there already is lost, and a refusal comes before any model is loaded.

The model folder of these commands does not exist: a sentence about an output shows that it was looked at first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from relay_lightning.files import lock

NO_MODEL = "/no/where"
PRECIOUS = "precious\nhalf a line"


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": str(i)}) + "\n" for i in range(40)))
    return path


def arguments(command: str, problems: Path) -> list[object]:
    """A command line whose output is `out` in the working folder, or a file in it."""
    data = ["--data", problems, "--num_problems", "null"]
    split = f"{{class_path: PromptDataModule, init_args: {{test: {problems}, num_test_problems: null}}}}"
    model = f"{{class_path: GRPOModule, init_args: {{student: {NO_MODEL}, teacher: null}}}}"
    return {
        "filter": ["filter", "--output", "out", *data, "--teacher", NO_MODEL],
        "synthesize": ["synthesize", "--output", "out", *data, "--student", NO_MODEL],
        "export": ["export", "--output", "out", "--ckpt_path", "nope.ckpt"],
        "predict": ["predict", "--run_dir", "out", "--model", model, "--data", split],
    }[command]


@pytest.mark.parametrize("content", [PRECIOUS, '{"question": "q0", "answer": "0"}\n', "{}\n"])
@pytest.mark.parametrize(
    ("command", "written"),
    [
        ("filter", "out"),
        ("filter", "out.pass_rates"),
        ("synthesize", "out"),
        ("export", "out"),
        ("export", "out/model.safetensors"),
        ("predict", "out/predictions.jsonl"),
        ("predict", "out"),
    ],
)
def test_a_file_that_is_there_already_is_named_and_kept(in_process, problems, tmp_path, command, written, content):
    path = tmp_path / written
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    before = sorted(tmp_path.iterdir())
    result = in_process(*arguments(command, problems))
    assert result.exit_code == 2
    assert "out" in result.sentence
    assert NO_MODEL not in result.sentence
    assert "nope.ckpt" not in result.sentence
    assert path.read_text() == content
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["filter", "synthesize"])
def test_the_input_is_refused_as_output(in_process, problems, tmp_path, command):
    content = problems.read_text()
    command_line = arguments(command, problems)
    for name in (problems, "link"):
        if name == "link":
            (tmp_path / "link").symlink_to(problems)
        command_line[command_line.index("--output") + 1] = name
        result = in_process(*command_line)
        assert result.exit_code == 2
        assert f"{name} exists already" in result.sentence
        assert problems.read_text() == content


@pytest.mark.parametrize("command", ["filter", "synthesize", "export", "predict"])
def test_nothing_is_left_behind_when_the_model_is_not_there(in_process, problems, tmp_path, command):
    before = sorted(tmp_path.iterdir())
    result = in_process(*arguments(command, problems))
    assert result.exit_code == 2
    assert NO_MODEL in result.sentence or "nope.ckpt" in result.sentence
    assert [path for path in sorted(tmp_path.iterdir()) if path not in before and any(path.iterdir())] == []


@pytest.mark.parametrize(
    ("command", "written"),
    [("filter", "out.pass_rates"), ("synthesize", "out"), ("predict", "out/predictions.jsonl")],
)
def test_an_output_that_another_command_writes_is_refused(in_process, problems, tmp_path, command, written):
    with lock(tmp_path / written):
        result = in_process(*arguments(command, problems))
    assert result.exit_code == 2
    assert f"Another command is writing {'' if command != 'predict' else 'out/'}" in result.sentence


def test_filter_makes_another_choice_from_its_own_rates_and_touches_no_edited_output(in_process, small_pair, tmp_path):
    command_line = [
        *("filter", "--output", "out", "--data", small_pair.problems, "--num_problems", "null"),
        *("--teacher", small_pair.teacher, "--num_samples", 2, "--max_completion_tokens", 32),
    ]
    assert in_process(*command_line).exit_code == 0
    rates = (tmp_path / "out.pass_rates").read_bytes()
    for threshold, num_kept in ((0, 8), (1, None), (0, 8)):
        assert in_process(*command_line, "--threshold", threshold).exit_code == 0
        assert num_kept in (None, len((tmp_path / "out").read_text().splitlines()))
    edited = (tmp_path / "out").read_bytes().partition(b"\n")[2]
    (tmp_path / "out").write_bytes(edited)
    result = in_process(*command_line)
    assert "out exists already and is not the output of this filter; choose another output" in result.sentence
    assert (tmp_path / "out").read_bytes() == edited
    assert (tmp_path / "out.pass_rates").read_bytes() == rates
    (tmp_path / "out").unlink()
    for damaged in (rates + rates.partition(b"\n")[2], rates.replace(b"kebu", b"kubi"), rates[:-9] + b"\xff\n"):
        (tmp_path / "out.pass_rates").write_bytes(damaged)
        result = in_process(*command_line)
        assert result.exit_code == 2
        assert "out.pass_rates" in result.sentence
        assert (tmp_path / "out.pass_rates").read_bytes() == damaged


def test_pictures_and_embedded_models_are_never_overwritten(monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    from benchmarks import plot
    from relay_lightning.tiny import build

    (tmp_path / "rollouts.jsonl").write_text(
        json.dumps({"step": 0, "is_correct": True, "token_ids": [1], "call_ratio": 0.5}) + "\n"
    )
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(PRECIOUS)
    for main, line in (
        (plot.main, ["plot", "training", str(tmp_path), str(tmp_path / "rollouts.jsonl")]),
        (build.main, ["build", "--out", str(tmp_path)]),
    ):
        content = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit):
            main()
        assert "exists" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == content
