"""Texts out of rows: nested columns, and patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.data.text_field import TextField, require_columns

DAPO_ROW = {
    "data_source": "math_dapo",
    "prompt": [{"content": "Solve the problem.\n\nWhat is 6*7?\n\nRemember the answer.", "role": "user"}],
    "reward_model": {"ground_truth": "42", "style": "rule"},
}


def field(column: str, pattern: str | None = None) -> TextField:
    return TextField(column, pattern, key="answer_pattern")


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("prompt[0].role", "user"),
        ("reward_model.ground_truth", "42"),
        ("data_source", "math_dapo"),
    ],
)
def test_nested_columns_are_reached(column, text) -> None:
    assert field(column).text(DAPO_ROW, "row 0") == text


def test_a_column_whose_name_looks_nested_is_taken_as_it_is() -> None:
    assert field("a.b[0]").text({"a.b[0]": "flat", "a": {"b": ["nested"]}}, "row 0") == "flat"


@pytest.mark.parametrize(
    "column", ["promt", "prompt[1].content", "prompt.content", "data_source[0]", "reward_model[0]", "prompt[0].text"]
)
def test_a_missing_column_is_named_beside_those_there_are(column) -> None:
    with pytest.raises(ValueError) as refused:
        require_columns(DAPO_ROW, [field("data_source"), field(column)], "x row 3")
    assert str(refused.value) == (
        f"x row 3 lacks '{column}'; its columns are 'data_source', 'prompt[0].content', 'prompt[0].role', "
        "'reward_model.ground_truth', 'reward_model.style'."
    )


def test_every_column_that_is_listed_can_be_read() -> None:
    names = ["data_source", "prompt[0].content", "prompt[0].role", "reward_model.ground_truth", "reward_model.style"]
    require_columns(DAPO_ROW, list(map(field, names)), "row 0")


@given(st.text("0123456789,.$", min_size=1))
def test_the_last_match_is_the_answer(answer) -> None:
    assert field("x", r"####\s*(.+)").extract(f"#### 0\nso #### {answer} \n") == answer


def test_a_pattern_unwraps_a_question_of_several_lines() -> None:
    unwrapped = field("prompt[0].content", r"(?s)\A.*?\n\n(.*)\n\nRemember")
    assert unwrapped.extract(unwrapped.text(DAPO_ROW, "row 0")) == "What is 6*7?"


@pytest.mark.parametrize("text", ["no hashes", "#### ", ""])
def test_nothing_is_taken_where_the_pattern_does_not_match(text) -> None:
    assert field("x", r"####\s*(.+)").extract(text) is None


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("(", r"answer_pattern '\(' is not a regular expression"),
        ("####", r"answer_pattern '####' must have one group, around what is wanted, but has 0"),
        ("(a)(b)", "but has 2"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        field("x", pattern)
