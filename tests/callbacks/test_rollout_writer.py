"""Rollouts on file: every token's source survives, and no rollout is lost or doubled by an interruption."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay_lightning.callbacks.rollout_writer import cut_rows, decode_runs, encode_runs, rollout_rows
from relay_lightning.json_lines import json_line, read_rows
from relay_lightning.types import (
    Completion,
    FinishReason,
    Prompt,
    RelaySpan,
    RewardCase,
    Rollout,
    RolloutGroup,
    TokenSource,
)

STUDENT, TEACHER = TokenSource.STUDENT, TokenSource.TEACHER


def group() -> RolloutGroup:
    completion = Completion(
        prompt_id=7,
        sample_index=1,
        token_ids=[5, 6, 7, 8],
        token_source=[STUDENT, STUDENT, TEACHER, STUDENT],
        log_probs=[0.0] * 4,
        sampling_log_probs=[0.0] * 4,
        spans=[RelaySpan(2, 3, 9, FinishReason.LENGTH, 1)],
        finish_reason=FinishReason.STOP,
        text="a\u2028b\n",
    )
    rollout = Rollout(completion, is_correct=True, reward=0.75, advantage=1.0)
    return RolloutGroup(Prompt(7, (1,), question="q?", answer="3"), [rollout], RewardCase.TEACHER_DEPENDENT)


def test_row_keeps_every_token_and_its_source():
    (row,) = json.loads(json.dumps(list(rollout_rows([group()], step=4))))
    assert (row["step"], row["prompt_id"], row["sample_index"]) == (4, 7, 1)
    assert row["token_ids"] == [5, 6, 7, 8]
    assert decode_runs(row["token_source"]) == [STUDENT, STUDENT, TEACHER, STUDENT]
    assert row["spans"] == [[1, 2, 3, 9, "length"]]
    assert row["reward_case"] == "teacher_dependent"
    assert row["call_ratio"] == 0.25


@given(st.lists(st.sampled_from(TokenSource)))
def test_run_length_code_is_inverted(sources: list[TokenSource]):
    runs = encode_runs(sources)
    assert decode_runs(runs) == sources
    assert all(first[0] != second[0] for first, second in pairwise(runs))


def write_rows(path: Path, steps: list[int], tail: str = "") -> None:
    path.write_text("".join(json.dumps({"step": step, "n": n}) + "\n" for n, step in enumerate(steps)) + tail)


def test_rows_the_checkpoint_does_not_have_are_dropped_on_resume(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    write_rows(path, [0, 0, 2, 2, 4, 4])
    cut_rows(path, from_step=4)
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_half_written_row_is_dropped_when_a_kill_left_one(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    write_rows(path, [0, 1], tail='{"step": 1, "te')
    cut_rows(path, from_step=5)
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 1]


def test_everything_is_dropped_when_training_starts_over(tmp_path: Path):
    path = tmp_path / "rollouts.jsonl"
    write_rows(path, [0, 1])
    cut_rows(path, from_step=0)
    assert path.read_text() == ""
    cut_rows(tmp_path / "absent.jsonl", from_step=0)
    assert not (tmp_path / "absent.jsonl").exists()


@pytest.mark.parametrize(
    "damage", [b"precious\n", b"{}\n", b'{"step": "0"}\n', b"\xff\n", b'{"step": 0, "te\n', b"\0\0\0\n"]
)
def test_a_file_that_is_damaged_or_of_somebody_else_is_named_and_kept(tmp_path: Path, damage):
    path = tmp_path / "rollouts.jsonl"
    for content in (damage, b'{"step": 0}\n' + damage + b'{"step": 0}\n{"ste'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"rollouts\.jsonl:[12] .*; move the file away to go on without it\.$"):
            cut_rows(path, from_step=1)
        assert path.read_bytes() == content


def test_a_lone_surrogate_stops_no_run(tmp_path: Path):
    own = group()
    prompt = replace(own.prompt, question="q\ud800", answer="\udc00")
    rows = [*rollout_rows([replace(own, prompt=prompt)], step=0)]
    (tmp_path / "rollouts.jsonl").write_text("".join(map(json_line, rows)), encoding="utf-8")
    [(_, row)] = read_rows(tmp_path / "rollouts.jsonl")
    assert (row["question"], row["answer"], row["text"]) == ("q\ud800", "\udc00", "a\u2028b\n")
