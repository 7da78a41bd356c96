"""Problems from files and from the embedded world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.data.records import Problem, count_shared, load_problems, question_key
from relay_lightning.data.source import DataSource


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_are_numbered_and_numbers_become_text_when_blank_lines_lie_between(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "1+1?", "answer": 2}\n\n{"question": "half?", "answer": "1/2"}\n')
    assert load_problems(str(path)) == [Problem(0, "1+1?", "2"), Problem(1, "half?", "1/2")]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"prompt": "q", "gold": "a"}\n')
    assert load_problems(DataSource(str(path), question="prompt", answer="gold")) == [Problem(0, "q", "a")]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ('{"question": "q"', r"a\.jsonl:2 is not valid JSON"),
        ('["q", "a"]', r"a\.jsonl:2 must be a JSON object, but is a list"),
        ('{"question": "q"}', r"a\.jsonl:2 lacks 'answer'; its columns are 'question'"),
        ('{"question": "q", "answer": true}', r"a\.jsonl:2: column 'answer' must be a text or a number, but is true"),
        (
            '{"question": {"text": "q"}, "answer": "1"}',
            r"column 'question' must be a text or a number, but is an object; inside it are 'question.text'",
        ),
        (
            '{"question": "q", "answer": ["1"]}',
            r"column 'answer' must be a text or a number, but is a list; inside it are 'answer\[0\]'",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: str, sentence: str) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "q", "answer": "a"}\n' + row + "\n")
    with pytest.raises(ValueError, match=sentence):
        load_problems(str(path))


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jsonl does not exist"):
        load_problems(str(tmp_path / "gone.jsonl"))
    with pytest.raises(ValueError, match=r"empty\.jsonl holds no problems"):
        load_problems(str(write(tmp_path / "empty.jsonl", "\n")))


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


def write_rows(path: Path, *rows: dict) -> str:
    return str(write(path, "".join(json.dumps(row) + "\n" for row in rows)))


def test_rows_whose_answer_cannot_be_read_are_counted_and_left_out(tmp_path, caplog) -> None:
    solutions = ["3+4 is 7.\n#### 7", "nobody knows", "#### 8 and then\n#### 1,234", "####  ", "#### $"]
    rows = [{"question": f"q{i}", "answer": solution} for i, solution in enumerate(solutions)]
    source = DataSource(write_rows(tmp_path / "a.jsonl", *rows), answer_pattern=r"####\s*(.+)")
    assert load_problems(source) == [Problem(0, "q0", "7"), Problem(2, "q2", "1,234")]
    (record,) = caplog.records
    assert "a.jsonl: no answer that can be read (left out) in 3 of its rows, first in" in record.message
    assert record.message.endswith("a.jsonl:2 ('nobody knows').")


def test_an_answer_that_is_too_long_to_be_judged_is_left_out_of_the_whole_column(tmp_path) -> None:
    rows = [{"question": "q0", "answer": "1" * 1001}, {"question": "q1", "answer": "1" * 1000}]
    assert [row.problem_id for row in load_problems(write_rows(tmp_path / "a.jsonl", *rows))] == [1]


def test_data_without_any_answer_that_can_be_read_are_refused(tmp_path) -> None:
    path = write_rows(tmp_path / "a.jsonl", {"question": "q", "answer": "x = 5"})
    with pytest.raises(
        ValueError, match=r"a\.jsonl holds no problems: no answer .* in 1 of its rows, first in .*:1 \('x = 5'\)\."
    ):
        load_problems(DataSource(path, answer_pattern="boxed"))


def test_a_worked_solution_gives_its_last_balanced_box(tmp_path) -> None:
    solution = r"First \boxed{0}, so \boxed{\frac{1}{2}}, not \boxed{2."
    path = write_rows(tmp_path / "a.jsonl", {"problem": "q", "solution": solution})
    source = DataSource(path, question="problem", answer="solution", answer_pattern="boxed")
    assert load_problems(source) == [Problem(0, "q", r"\frac{1}{2}")]


def test_num_problems_counts_only_rows_that_can_be_used(tmp_path) -> None:
    rows = [{"question": f"q{i}", "answer": "no box" if i % 2 else r"\boxed{1}"} for i in range(8)]
    source = DataSource(write_rows(tmp_path / "a.jsonl", *rows), answer_pattern="boxed")
    assert [row.problem_id for row in load_problems(source, num_problems=3)] == [0, 2, 4]


def test_repeated_questions_are_counted_and_kept(tmp_path, caplog) -> None:
    rows = [{"question": question, "answer": "1"} for question in ("a b", "c", "a  b\n", "c")]
    assert len(load_problems(write_rows(tmp_path / "a.jsonl", *rows))) == 4
    (record,) = caplog.records
    assert "a question asked before (kept) in 2 of its rows, first in" in record.message
    assert record.message.endswith("a.jsonl:3.")


@given(st.lists(st.text("ab \n", min_size=1)), st.lists(st.text("ab \n", min_size=1)))
def test_shared_questions_are_counted_whatever_their_spacing(questions, others) -> None:
    mine, theirs = ([Problem(i, text, "") for i, text in enumerate(texts)] for texts in (questions, others))
    asked = [other.split() for other in others]
    assert count_shared(mine, theirs) == sum(question.split() in asked for question in questions)
    assert all(question_key(f" {text}\n") == question_key(text) for text in questions)
