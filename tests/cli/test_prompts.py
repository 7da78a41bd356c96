"""What the command line makes of questions, tokenizers and chat templates that cannot be used as they are."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from relay_lightning.data.chat_template import make_prompt
from relay_lightning.models.loading import load_tokenizer
from relay_lightning.models.settings import LoadSettings

LONG = "kebu " * 600


@pytest.fixture
def problems(small_pair, tmp_path: Path) -> Path:
    """Two problems of which the second is longer than the small pair's context of 512 tokens."""
    row = Path(small_pair.problems).read_text().splitlines()[0]
    path = tmp_path / "problems.jsonl"
    path.write_text(f"{row}\n" + json.dumps({"question": LONG, "answer": "1"}) + "\n")
    return path


@pytest.fixture
def without(small_pair, tmp_path: Path):
    """A copy of the small student that lacks a file or its chat template."""

    def make(*, files: tuple[str, ...] = (), template: bool = True) -> str:
        folder = tmp_path / "student"
        shutil.copytree(small_pair.student, folder)
        for name in files:
            (folder / name).unlink(missing_ok=True)
        if not template:
            path = folder / "tokenizer_config.json"
            settings = json.loads(path.read_text())
            del settings["chat_template"]
            path.write_text(json.dumps(settings))
        return str(folder)

    return make


def test_filter_leaves_out_a_problem_that_the_teacher_cannot_read(in_process, small_pair, problems, tmp_path, caplog):
    arguments = ["--data", problems, "--num_problems", "null", "--teacher", small_pair.teacher, "--num_samples", 1]
    result = in_process("filter", "--output", tmp_path / "kept.jsonl", *arguments, "--max_completion_tokens", 4)
    assert result.exit_code == 0
    assert re.search(r"1 of 2 prompts of .* teacher's context of 512 tokens and are left out", caplog.text)
    header, *rates = map(json.loads, (tmp_path / "kept.jsonl.pass_rates").read_text().splitlines())
    assert [row["problem_id"] for row in rates] == [0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", header["day"])


def test_synthesize_leaves_out_a_problem_that_the_student_cannot_read(
    in_process, small_pair, problems, tmp_path, caplog
):
    arguments = ["--data", problems, "--num_problems", "null", "--student", small_pair.student]
    result = in_process("synthesize", "--output", tmp_path / "rows.jsonl", *arguments, "--max_completion_tokens", 4)
    assert result.exit_code == 0
    assert re.search(r"1 of 2 prompts of .* student's context of 512 tokens and are left out", caplog.text)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("student", "teacher", "num_words"),
    [("./student", "null", 600), ("tiny:student", "./teacher", 300), ("./student", "./byte", 90)],
)
def test_generate_refuses_a_question_that_is_too_long_before_weights_are_read(
    in_process, small_pair, byte_teacher, tmp_path, student, teacher, num_words
) -> None:
    """The teacher's context counts as well, in its own vocabulary if that is another one."""
    models = {"student": small_pair.student, "teacher": small_pair.teacher, "byte": byte_teacher}
    for name, folder in models.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    reader = "student" if teacher == "null" else "teacher"
    result = in_process("generate", "kebu " * num_words, "--student", student, "--teacher", teacher)
    assert result.exit_code == 2
    sentence = rf"error: The question has \d+ tokens, which leave no room in the {reader}'s context of 512 tokens\."
    assert re.fullmatch(sentence, result.sentence)


@pytest.mark.parametrize("files", [("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json")])
def test_a_folder_without_a_tokenizer_is_named_as_such(in_process, config, without, files) -> None:
    result = in_process("fit", "--config", config, "--model.student", without(files=files))
    assert result.exit_code == 2
    assert re.search(r"student' holds no tokenizer; copy tokenizer\.json", result.sentence)


def test_a_base_model_without_a_template_is_refused_with_the_remedy_which_works(in_process, config, without, tmp_path):
    student = without(template=False)
    result = in_process("fit", "--config", config, "--model.student", student)
    assert result.exit_code == 2
    assert re.search(r"no chat template: .* student_loading\.chat_template", result.sentence)
    settings = yaml.safe_load(config.read_text())
    settings["model"]["init_args"] |= {"student": student, "student_loading": {"chat_template": "plain.jinja"}}
    config.write_text(yaml.safe_dump(settings))
    missing = in_process("fit", "--config", config)
    assert missing.exit_code == 2
    assert "The chat template plain.jinja cannot be read" in missing.sentence
    (tmp_path / "plain.jinja").write_text("{{ messages[0].content }}")
    assert in_process("fit", "--config", config, "--trainer.max_steps", 1).exit_code == 0


def test_a_chat_template_of_the_settings_is_the_one_in_use(small_pair, tmp_path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text("Q: {{ messages[0].content }}\nA:")
    tokenizer = load_tokenizer(small_pair.student, LoadSettings(chat_template=str(path)))
    assert make_prompt(tokenizer, 0, "q").text.startswith("Q: q\nPlease")
