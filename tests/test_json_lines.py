"""JSON lines: every row that is written can be read again, and a damaged file has a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.json_lines import json_line, parse_row, read_rows

ANY_TEXT = st.text(st.characters(codec=None, categories=None))
"""Lone surrogates included."""


@given(st.lists(ANY_TEXT | st.just("\ud800") | st.just("a\u2028\x85\r\n\udfff")))
def test_any_text_survives_as_one_line_of_utf8(texts):
    line = json_line({"texts": texts})
    assert line.encode("utf-8").count(b"\n") == 1
    joined = [text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") for text in texts]
    assert parse_row(line, "here") == {"texts": joined}  # two halves of one character side by side are the character


def test_rows_end_where_they_end_and_a_half_written_one_is_none(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    whole = json_line({"n": 1}) + json_line({"text": "é\u2028\ud800"})
    for half in (b"", b'{"n', b'{"n": 3}', "{é".encode()[:-1], b"\xff\x00"):
        path.write_bytes(whole.encode() + half)
        assert list(read_rows(path)) == [(9, {"n": 1}), (len(whole.encode()), {"text": "é\u2028\ud800"})]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"\xff\n", r"rows\.jsonl:2 is not UTF-8 text; move it\.$"),
        (b"\0\0\0\n", r"rows\.jsonl:2 is not UTF-8 text; move it\.$"),
        (b"{\n", r"rows\.jsonl:2 is not valid JSON \(.* at character \d+\); move it\.$"),
        (b"[1]\n", r"rows\.jsonl:2 must be a JSON object, but is a list; move it\.$"),
        (b'{"n": ' + b"9" * 5000 + b"}\n", r"rows\.jsonl:2 holds a number that cannot be read"),
        (b'{"n": ' * 100_000 + b"\n", r"rows\.jsonl:2 .* nested too deeply"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line, sentence):
    (tmp_path / "rows.jsonl").write_bytes(b'{"n": 1}\n' + line + b'{"n": 3}\n')
    with pytest.raises(ValueError, match=sentence):
        list(read_rows(tmp_path / "rows.jsonl", hint="; move it"))
