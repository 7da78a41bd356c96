"""Data files as they come from people: encodings, line ends, compression, and values that no answer can be."""

from __future__ import annotations

import gzip
import json
import math
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from relay_lightning.data.records import MAX_QUESTION_CHARACTERS, Problem, load_problems
from relay_lightning.data.source import DataSource
from relay_lightning.rewards.answers import is_correct

ROW = '{"question": "q%d", "answer": "%d"}'
TWO_ROWS = [Problem(0, "q1", "1"), Problem(1, "q2", "2")]
TWO_LINES = "\n".join([ROW % (1, 1), ROW % (2, 2)])


def zipped(data: bytes) -> bytes:
    """Without a time, which would change the tests' names from process to process."""
    return gzip.compress(data, mtime=0)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        TWO_LINES + "\n",
        TWO_LINES,
        TWO_LINES.replace("\n", "\r\n") + "\r\n",
        TWO_LINES.replace("\n", "\r"),
        "\n \n" + TWO_LINES.replace("\n", "\n\n\t\n") + "\n\n",
        "\ufeff" + TWO_LINES,
        "\ufeff" + TWO_LINES.replace("\n", "\n\ufeff"),  # two files with a byte order mark, one after the other
        "\ufeff\n" + TWO_LINES,
    ],
    ids=["LF", "no last LF", "CRLF", "CR", "blank lines", "BOM", "BOM of two files", "BOM alone"],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a", "a.jsonl.gz", "compressed.jsonl"])
def test_rows_are_read_as_they_are_whatever_ends_a_line(tmp_path, content, name) -> None:
    data = content.encode()
    is_compressed = name in ("a.jsonl.gz", "compressed.jsonl")
    path = write(tmp_path / name, zipped(data) if is_compressed else data)
    assert load_problems(path) == TWO_ROWS


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_a_separator_inside_a_text_ends_no_row(tmp_path, char) -> None:
    text = json.dumps(f"a{char}b", ensure_ascii=ord(char) < 32)
    path = write(tmp_path / "a.jsonl", f'{{"question": {text}, "answer": "1"}}\n')
    assert load_problems(path) == [Problem(0, f"a{char}b", "1")]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ((TWO_LINES + '\n{"question": "é", "answer": "1"}\n').encode("latin-1"), "a.jsonl:3"),
        (TWO_LINES.encode("utf-16"), "a.jsonl:1"),
        (TWO_LINES.encode("utf-16-le"), "a.jsonl:1"),
        (TWO_LINES.encode("utf-16-be"), "a.jsonl:1"),
        (TWO_LINES.encode("utf-32"), "a.jsonl:1"),
        (b'{"question": "q1", "answer": "1"}\r\n{"question": "\xed\xa0\x80"}\r\n', "a.jsonl:2"),
    ],
    ids=["latin-1", "UTF-16", "UTF-16 LE", "UTF-16 BE", "UTF-32", "encoded surrogate"],
)
@pytest.mark.parametrize("is_compressed", [False, True])
def test_text_that_is_not_utf8_is_named_by_file_and_line(tmp_path, content, place, is_compressed) -> None:
    path = write(tmp_path / "a.jsonl", zipped(content) if is_compressed else content)
    with pytest.raises(ValueError) as refused:
        load_problems(path)
    assert str(refused.value).startswith(f"{tmp_path}/{place} is not UTF-8 text; what is read is JSONL")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "question,answer\nq,1\n", r"a\.csv:1 is not valid JSON .*; what is read is JSONL .* and Parquet\."),
        ("a.tsv", "question\tanswer\n", r"a\.tsv:1 is not valid JSON .* at character 1\); what is read is JSONL"),
        ("a.csv", "1,2\n", r"a\.csv:1 is not valid JSON .*; what is read is JSONL"),
        ("a.csv.gz", zipped(b"question,answer\n"), r"a\.csv\.gz:1 is not valid JSON"),
        ("a.json", f"[{ROW % (1, 1)}]", r"a\.json:1 must be a JSON object, but is a list; what is read is JSONL"),
        ("a.json", f"[\n{ROW % (1, 1)}\n]", r"a\.json:1 is not valid JSON .*; what is read is JSONL"),
        ("a.jsonl", "5\n", r"a\.jsonl:1 must be a JSON object, but is a number"),
        ("a.jsonl", "null\n", r"a\.jsonl:1 must be a JSON object, but is null"),
        ("a.jsonl", ROW % (1, 1) + "\n" + "[" * 100_000, r"a\.jsonl:2 .* is nested too deeply"),
        ("a.jsonl", '{"x": ' * 100_000, r"a\.jsonl:1 .* is nested too deeply"),
        ("a.jsonl", b"", r"a\.jsonl holds no problems"),
        ("a.jsonl.gz", b"", r"a\.jsonl\.gz holds no problems"),
        ("a.jsonl.gz", zipped(b""), r"a\.jsonl\.gz holds no problems"),
        ("a.jsonl.gz", zipped(TWO_LINES.encode())[:-12], r"data file .*a\.jsonl\.gz cannot be read: "),
        ("a.jsonl.gz", b"\x1f\x8bnonsense", r"data file .*a\.jsonl\.gz cannot be read: "),
        ("a.jsonl.gz", zipped(b'{"question": \n'), r"a\.jsonl\.gz:1 is not valid JSON"),
        ("a.parquet", b"", r"a\.parquet cannot be read as Parquet"),
        ("a.parquet", TWO_LINES, r"a\.parquet cannot be read as Parquet"),
        ("a.jsonl", "PAR1 and so on", r"a\.jsonl:1 is not valid JSON"),
    ],
)
def test_what_is_not_read_is_refused_in_one_short_sentence(tmp_path, name, content, sentence) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    with pytest.raises(ValueError, match=sentence) as refused:
        load_problems(write(tmp_path / name, content))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("name", ["data/a.jsonl.gz", "data/a.csv", "data/a.JSONL", "~nobody/a.jsonl", "x" * 300])
def test_a_file_that_does_not_exist_is_no_hub_id(name) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_problems(name)


@pytest.mark.parametrize(
    "answer",
    [
        *("null", '""', '" \\n"', "NaN", "Infinity", "-Infinity", "1e999999", "1e99999999999999999999"),
        *("9" * 5000, "-" + "9" * 5000, "0." + "3" * 5000, '"\\ud800"', '"3\\udc00"', '"$ $"'),
    ],
)
def test_an_answer_that_cannot_be_read_is_left_out_and_counted(tmp_path, caplog, answer) -> None:
    path = write(tmp_path / "a.jsonl", f'{ROW % (1, 1)}\n{{"question": "q", "answer": {answer}}}\n{ROW % (2, 2)}\n')
    assert [problem.question for problem in load_problems(path)] == ["q1", "q2"]
    (record,) = caplog.records
    assert f"no answer that can be read (left out) in 1 of its rows, first in {path}:2" in record.message
    assert len(record.message) < 600


@pytest.mark.parametrize(
    "question", ["null", '""', '" "', '"\\ud83d"', "NaN", f'"{"q" * (MAX_QUESTION_CHARACTERS + 1)}"']
)
def test_a_question_that_cannot_be_read_is_left_out_and_counted(tmp_path, caplog, question) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"question": {question}, "answer": "3"}}\n{ROW % (2, 2)}\n')
    assert load_problems(path) == [Problem(1, "q2", "2")]
    (record,) = caplog.records
    assert f"no question that can be read (left out) in 1 of its rows, first in {path}:1" in record.message


def test_odd_values_in_other_columns_hold_up_no_row(tmp_path) -> None:
    other = f'"id": {"7" * 5000}, "weight": NaN, "solution": "\\ud800", "notes": {"[" * 200}{"]" * 200}'
    path = write(tmp_path / "a.jsonl", f'{{{other}, "question": "q", "answer": "1"}}\n')
    assert load_problems(path) == [Problem(0, "q", "1")]


def test_a_pair_of_surrogates_is_one_character(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "\\ud83d\\ude00", "answer": "1"}\n')
    assert load_problems(path) == [Problem(0, "\U0001f600", "1")]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("0.00001", "0.00001"),
        ("1e-05", "0.00001"),
        ("-2.5E-7", "-0.00000025"),
        ("1e3", "1000"),
        ("72.0", "72"),
        ("72.50", "72.5"),
        ("0", "0"),
        ("100", "100"),
        ("12345678901234567890.125", "12345678901234567890.125"),
    ],
)
def test_a_number_is_written_out_and_judged_as_that_number(tmp_path, number, text) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"question": "q", "answer": {number}}}\n')
    (problem,) = load_problems(path)
    assert problem.answer == text
    assert is_correct(f"\\boxed{{{text}}}", problem.answer)


def test_a_number_can_be_a_question(tmp_path) -> None:
    assert load_problems(write(tmp_path / "a.jsonl", '{"question": 7, "answer": 7.5}\n')) == [Problem(0, "7", "7.5")]


def test_the_last_of_two_equal_keys_counts(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", '{"question": "q", "answer": "1", "answer": "2"}\n')
    assert load_problems(path) == [Problem(0, "q", "2")]


def write_parquet(path: Path, columns: dict[str, list]) -> str:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `data` is not installed")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)
    return str(path)


def test_parquet_numbers_are_read_whatever_their_type(tmp_path, caplog) -> None:
    for answers, texts in (
        ([Decimal("72.00"), Decimal("0.10"), None], ["72", "0.1"]),
        ([Decimal("1E-30"), Decimal("1")], ["0." + "0" * 29 + "1", "1"]),
        ([1e-5, math.nan, math.inf, 3.0], ["0.00001", "3"]),
        ([2**62, -5], [str(2**62), "-5"]),
    ):
        caplog.clear()
        columns = {"question": [f"q{index}" for index in range(len(answers))], "answer": answers}
        assert [row.answer for row in load_problems(write_parquet(tmp_path / "a.PARQUET", columns))] == texts
        assert len(caplog.records) == (len(texts) < len(answers))


def test_a_parquet_column_of_another_type_is_named(tmp_path) -> None:
    for value, found in (
        (date(2024, 1, 2), "a date"),
        (b"72", "a bytes"),
        (True, "true"),
        ([72], r"a list; inside it are 'answer\[0\]'"),
        ({"value": "72"}, "an object; inside it are 'answer.value'"),
    ):
        path = write_parquet(tmp_path / "a.parquet", {"question": ["q"], "answer": [value]})
        with pytest.raises(ValueError, match=rf"a\.parquet row 0: column 'answer' must be a text .* but is {found}\.$"):
            load_problems(path)
    assert load_problems(DataSource(path, answer="answer.value")) == [Problem(0, "q", "72")]


@pytest.mark.parametrize("char", ["\x1b[2J", "\u202e", "\u2066", "\x9b", "\n", "\ud800"])
def test_the_name_of_a_column_is_escaped_and_shortened_in_a_sentence(tmp_path, char) -> None:
    columns = {f"a{char}b": 1, "long" * 10_000: 2, **{f"column {number}": 3 for number in range(1000)}}
    path = write(tmp_path / "a.jsonl", json.dumps(columns) + "\n")
    with pytest.raises(ValueError, match="lacks 'question'") as refused:
        load_problems(path)
    sentence = str(refused.value)
    assert sentence.isprintable()
    assert len(sentence) < 2000
    assert repr(f"a{char}b") in sentence


def test_a_value_of_many_characters_is_shortened_in_a_sentence(tmp_path, caplog) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"question": "q", "answer": {json.dumps(["x" * 2_000_000])}}}\n')
    with pytest.raises(ValueError, match="but is a list") as refused:
        load_problems(path)
    assert len(str(refused.value)) < 300
    write(tmp_path / "a.jsonl", f'{ROW % (1, 1)}\n{{"question": "q", "answer": "{"x" * 2_000_000}"}}\n')
    assert len(load_problems(path)) == 1
    assert len(caplog.records[0].message) < 600


@pytest.mark.slow
def test_a_line_of_100_megabytes_is_read(tmp_path) -> None:
    row = json.dumps({"question": "q", "answer": "1", "trace": "x" * 100_000_000})
    assert load_problems(write(tmp_path / "a.jsonl", row)) == [Problem(0, "q", "1")]
    with pytest.raises(ValueError, match="no question that can be read") as refused:
        load_problems(DataSource(str(tmp_path / "a.jsonl"), question="trace"))
    assert len(str(refused.value)) < 600
