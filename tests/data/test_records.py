"""Problems from files and from the embedded world."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay_lightning.data.records import Problem, load_problems, read_problems


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_are_numbered_and_numbers_become_text_when_blank_lines_lie_between(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "1+1?", "answer": 2}\n\n{"question": "half?", "answer": "1/2"}\n')
    assert read_problems(path) == [Problem(0, "1+1?", "2"), Problem(1, "half?", "1/2")]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "q", "gold": "a"}\n')
    assert load_problems(str(path), question_column="prompt", answer_column="gold") == [Problem(0, "q", "a")]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"question": "q"', r"a\.jsonl:2 is not valid JSON"),
        ('["q", "a"]', r"a\.jsonl:2 must be a JSON object, but is a list"),
        ('{"question": "q"}', r"a\.jsonl:2 lacks 'answer'; its columns are 'question'"),
        ('{"question": "q", "answer": null}', r"a\.jsonl:2: column 'answer' must be a text or a number, but is null"),
        ('{"question": " ", "answer": "1"}', r"a\.jsonl:2: column 'question' must be a text"),
        ('{"question": "q", "answer": true}', r"a\.jsonl:2: column 'answer' must be a text or a number, but is true"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: str, sentence: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "q", "answer": "a"}\n' + row + "\n")
    with pytest.raises(ValueError, match=sentence):
        read_problems(path)


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl does not exist"):
        read_problems(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no problems"):
        read_problems(write(tmp_path / "empty.jsonl", "\n"))


def test_num_problems_takes_the_first_ones(tmp_path: Path) -> None:
    rows = "".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(5))
    path = write(tmp_path / "a.jsonl", rows)
    assert [problem.answer for problem in load_problems(str(path), num_problems=2)] == ["0", "1"]
    with pytest.raises(ValueError, match="num_problems"):
        load_problems(str(path), num_problems=0)


def test_the_embedded_world_has_two_splits_and_no_end() -> None:
    train = load_problems("tiny:train", num_problems=5, seed=1)
    assert [problem.problem_id for problem in train] == [0, 1, 2, 3, 4]
    assert all(problem.answer.isdecimal() for problem in train)
    assert load_problems("tiny:train", num_problems=3, seed=1) == train[:3]
    assert load_problems("tiny:train", num_problems=5, seed=2) != train
    with pytest.raises(ValueError, match="tiny:validation"):
        load_problems("tiny:validation", num_problems=5)
    with pytest.raises(ValueError, match="say how many"):
        load_problems("tiny:test")
