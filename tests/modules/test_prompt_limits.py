"""Prompts without room in a model's context are left out before the first step, and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from relay_lightning.data.prompt_limits import context_limit, drop_long_prompts
from relay_lightning.models.loading import load_tokenizer
from relay_lightning.types import Prompt


def test_a_prompt_and_one_token_have_to_fit_each_context(caplog) -> None:
    prompts = [Prompt(index, (1,) * length) for index, length in enumerate((3, 4, 5))]
    limits = [
        context_limit("student", LlamaConfig(max_position_embeddings=5)),
        context_limit("teacher", LlamaConfig(max_position_embeddings=8), lambda prompt: [1, 1] * len(prompt.token_ids)),
    ]
    assert drop_long_prompts(prompts, 9, limits, source="data.jsonl") == prompts[:1]
    assert [record.message for record in caplog.records] == [
        "1 of 3 prompts of data.jsonl leave no room in the student's context of 5 tokens and are left out.",
        "1 of 2 prompts of data.jsonl leave no room in the teacher's context of 8 tokens and are left out.",
    ]
    with pytest.raises(ValueError, match=r"^All 2 prompts of d leave no room in the student's context of 5 tokens\.$"):
        drop_long_prompts([prompts[2]] * 2, None, limits, source="d")


@pytest.fixture
def problems(small_pair: Any, tmp_path: Path) -> str:
    """The small pair's problems; two of nine are too long for a context of 512 tokens, one only as bytes."""
    rows = Path(small_pair.problems).read_text().splitlines()
    tokenizer = load_tokenizer(small_pair.student)
    words = " kebu" * 90
    assert len(tokenizer(words)["input_ids"]) < 400 < len(words)
    rows += [json.dumps({"question": text, "answer": "1"}) for text in ("kebu " * 600, words)]
    path = tmp_path / "long.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.mark.parametrize(("has_bridge", "num_left"), [(False, 9), (True, 8)])
def test_the_splits_of_a_run_leave_out_what_no_context_holds(
    small_pair, byte_teacher, problems, make_module, make_data, make_trainer, has_bridge, num_left, caplog
) -> None:
    teacher = byte_teacher if has_bridge else small_pair.teacher
    module = make_module(teacher=teacher, max_completion_tokens=4, group_size=2)
    source = dict.fromkeys(("train", "val", "test"), problems)
    numbers = dict.fromkeys(("num_train_problems", "num_val_problems", "num_test_problems"))
    data = make_data(**source, **numbers, max_prompt_tokens=5000, prompts_per_rollout=num_left)
    make_trainer(1, limit_val_batches=1.0, num_sanity_val_steps=0).fit(module, data)
    said = [record.message for record in caplog.records if "leave no room" in record.message]
    assert sum("1 of 10" in message and "student's context of 512" in message for message in said) == 2
    assert sum("1 of 9" in message and "teacher's context of 512" in message for message in said) == 2 * has_bridge
    data.setup("test")
    assert [prompt.prompt_id for prompt in data.build_prompts("test")] == list(range(8)) + [9] * (not has_bridge)
