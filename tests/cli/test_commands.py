"""The subcommands beside training, on the small pair."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from relay_lightning.data.records import load_problems


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_help_lists_every_subcommand_and_imports_nothing_heavy():
    code = (
        "import sys; from relay_lightning.__main__ import run; code = run(['--help']);"
        "heavy = {'torch', 'lightning', 'transformers'} & sys.modules.keys(); sys.exit(f'{heavy}' if heavy else code)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for subcommand in ("fit", "validate", "test", "predict", "filter", "synthesize", "export", "generate"):
        assert f"  {subcommand} " in shown


def test_generate_prints_the_answer_and_who_wrote_how_much(in_process, small_pair):
    result = in_process(
        *("generate", "How many kebu?", "--student", small_pair.student, "--teacher", small_pair.teacher),
        *("--max_completion_tokens", 32),
    )
    assert result.exit_code == 0, result.errors
    assert "answer is" in result.output
    assert "tokens by the teacher (call ratio" in result.errors.splitlines()[-1]


def test_generate_without_arguments_shows_calls(in_process):
    """The packaged pair: the student asks for the two prices that only the teacher knows, and no more than it needs."""
    result = in_process("generate")
    assert result.exit_code == 0, result.errors
    assert len(re.findall(r"<call>\d</call><teacher>\d\d", result.output)) == 2
    assert " of " not in result.output
    assert "2 calls" in result.errors.splitlines()[-1]
    cut = in_process("generate", "--max_call_tokens", 1)
    assert re.search(r"<call>(\d)</call>\[1 of \1\]<teacher>\d", cut.output)
    other = in_process("generate", "Zoe takes 6 gabu at 22. What does Zoe pay in coins?")
    assert "gabu" in other.output
    assert other.output != result.output


def test_generate_takes_the_students_own_limits_unless_others_are_given(in_process, small_pair, tmp_path):
    student = shutil.copytree(small_pair.student, tmp_path / "student")
    settings = {"max_calls": 0, "sampling": {"max_completion_tokens": 6, "temperature": 0.0}}
    (student / "relay_config.json").write_text(json.dumps(settings))
    own = in_process("generate", "How many kebu?", "--student", student, "--teacher", small_pair.teacher)
    assert own.errors.splitlines()[-1].startswith("6 tokens, 0 calls")
    given = ["--max_completion_tokens", 9, "--max_calls", "null"]
    given = in_process("generate", "How many kebu?", "--student", student, "--teacher", small_pair.teacher, *given)
    assert given.errors.splitlines()[-1].startswith("9 tokens")
    (student / "relay_config.json").write_text('{"max_call": 3}')
    damaged = in_process("generate", "How many kebu?", "--student", student, "--teacher", small_pair.teacher)
    assert damaged.exit_code == 2
    assert f"{student}/relay_config.json: there is no key 'max_call'" in damaged.sentence


def filter_arguments(small_pair, output: Path) -> list[object]:
    return [
        *("filter", "--output", output, "--data", small_pair.problems, "--num_problems", "null"),
        *("--teacher", small_pair.teacher, "--num_samples", 6, "--threshold", 0.34, "--max_completion_tokens", 32),
        *("--problems_per_batch", 3),
    ]


def test_filter_keeps_what_the_teacher_solves_and_training_can_read_it(in_process, small_pair, tmp_path):
    output = tmp_path / "kept.jsonl"
    result = in_process(*filter_arguments(small_pair, output))
    assert result.exit_code == 0, result.errors
    header, *rates = rows(Path(f"{output}.pass_rates"))
    assert header["settings"]["num_samples"] == 6
    assert [rate["problem_id"] for rate in rates] == list(range(8))
    assert all(rate["pass_rate"] == rate["num_correct"] / 6 for rate in rates)
    kept = rows(output)
    assert kept == [rate for rate in rates if rate["pass_rate"] >= 0.34]
    assert 0 < len(kept) < 8
    assert [problem.question for problem in load_problems(str(output))] == [row["question"] for row in kept]


def test_filter_goes_on_where_it_was_killed_and_ends_the_same(in_process, small_pair, tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert in_process(*filter_arguments(small_pair, whole)).exit_code == 0
    rates = Path(f"{whole}.pass_rates").read_text()
    lines = rates.splitlines(keepends=True)
    Path(f"{killed}.pass_rates").write_text("".join(lines[:5]) + lines[5][:10])
    assert in_process(*filter_arguments(small_pair, killed)).exit_code == 0
    assert Path(f"{killed}.pass_rates").read_text() == rates
    assert killed.read_text() == whole.read_text()


WORKED_ROWS = [
    {"prompt": [{"content": f"How many {word}?"}], "solution": f"So \\boxed{{{number}}}." if number else "Unknown."}
    for number, word in enumerate(("nothing", "kebu", "lomi", "tari"))
]


def test_filter_reads_mapped_columns_and_leaves_out_rows_without_an_answer(in_process, small_pair, tmp_path, caplog):
    data, output = tmp_path / "worked.jsonl", tmp_path / "kept.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in WORKED_ROWS))
    mapping = f"{{path: {data}, question: 'prompt[0].content', answer: solution, answer_pattern: boxed}}"
    arguments = filter_arguments(small_pair, output)
    arguments[arguments.index("--data") + 1] = mapping
    result = in_process(*arguments)
    assert result.exit_code == 0, result.errors
    assert f"no answer that can be read (left out) in 1 of its rows, first in {data}:1 (" in caplog.text
    header, *rates = rows(Path(f"{output}.pass_rates"))
    assert header["settings"]["data"]["question"] == "prompt[0].content"
    assert [(rate["problem_id"], rate["answer"]) for rate in rates] == [(1, "1"), (2, "2"), (3, "3")]
    assert in_process(*arguments).exit_code == 0


def test_filter_refuses_to_go_on_when_the_data_have_changed(in_process, small_pair, tmp_path):
    data, output = tmp_path / "data.jsonl", tmp_path / "kept.jsonl"
    arguments = filter_arguments(small_pair, output)
    arguments[arguments.index("--data") + 1] = data
    for answer, exit_code in ((1, 0), (1, 0), (2, 2)):
        data.write_text(json.dumps({"question": "How many kebu?", "answer": answer}) + "\n")
        result = in_process(*arguments)
        assert result.exit_code == exit_code, result.errors
    assert re.search("made with other settings .problems was '.*' and is '.*'.; choose another output", result.sentence)


def test_synthesize_writes_the_students_own_text_with_commands(in_process, small_pair, tmp_path):
    arguments = [
        *("synthesize", "--data", small_pair.problems, "--num_problems", "null", "--student", small_pair.student),
        *("--samples_per_prompt", 2, "--max_completion_tokens", 32, "--command_free_share", 0.5),
    ]
    output = tmp_path / "warmup.jsonl"
    assert in_process(*arguments, "--output", output).exit_code == 0
    samples = rows(output)
    assert len(samples) == 16
    called = [row for row in samples if row["completion_with_commands"] != row["completion"]]
    assert 0 < len(called) < 16
    assert all("<call>" in row["completion_with_commands"] for row in called)
    refused = in_process(*arguments, "--output", output)
    assert "exists already and is not overwritten" in refused.sentence
    assert in_process(*arguments, "--cache_dir", tmp_path / "cache").exit_code == 0
    assert len(list((tmp_path / "cache").glob("*.jsonl"))) == 1


def greedy(folder: Path, prompts: list[str]) -> list[list[int]]:
    """Greedy completions by plain Transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    completions = []
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)
        completions.append(written[0, ids.shape[1] :].tolist())
    return completions


@pytest.mark.parametrize("lora", [None, "adapters", "merged"])
def test_exported_student_writes_the_same_greedy_tokens(in_process, config, small_pair, tmp_path, lora):
    from relay_lightning import SamplingParams, load_relay
    from relay_lightning.data.chat_template import INSTRUCTION

    limits = ["--model.max_calls", 2, "--model.eos_policy", "return", "--model.spent_calls", "mask_close"]
    adapters = ["--model.lora", '{"rank": 4}', "--model.optimizer.init_args.lr", "0.03"] if lora else []
    trained = in_process("fit", "--config", config, "--report.enabled", "false", *limits, *adapters)
    assert trained.exit_code == 0, trained.errors
    checkpoint, folder = tmp_path / "runs" / "grpo" / "checkpoints" / "last.ckpt", tmp_path / "exported"
    merge = ["--merge", "true"] if lora == "merged" else []
    exported = in_process("export", "--ckpt_path", checkpoint, "--output", folder, *merge)
    assert exported.exit_code == 0, exported.errors
    (weights,) = folder.glob("*.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (folder / "SHA256SUMS").read_text() == f"{digest}  {weights.name}\n"
    assert (folder / "adapter_config.json").exists() == (lora == "adapters")
    kept = json.loads((folder / "relay_config.json").read_text())
    assert (kept["tags"], kept["teacher"]) == (["<call>", "</call>"], small_pair.teacher)
    assert (kept["max_calls"], kept["max_call_tokens"], kept["eos_policy"]) == (2, None, "return")
    assert kept["spent_calls"] == "mask_close"
    assert (kept["sampling"]["max_completion_tokens"], kept["sampling"]["temperature"]) == (32, 0.0)

    predicted = in_process(
        "predict", "--config", config, "--ckpt_path", checkpoint, *adapters, *limits, "--model.teacher", "null"
    )
    assert predicted.exit_code == 0, predicted.errors
    predictions = rows(tmp_path / "runs" / "grpo" / "predictions.jsonl")
    ids = greedy(folder, [f"{row['question']}\n{INSTRUCTION}" for row in predictions])
    for row, written in zip(predictions, ids, strict=True):
        if row["num_malformed_calls"] == 0:  # teacher-free decoding forbids what plain decoding may write
            assert written == row["token_ids"][:24]
    if lora != "adapters":
        (answer,) = load_relay(str(folder), None).generate(
            [predictions[0]["question"]], SamplingParams(32, 0.0), policy="teacher_free"
        )
        assert answer.token_ids == predictions[0]["token_ids"]


def test_merging_is_refused_when_there_are_no_adapters(in_process, config, tmp_path):
    assert in_process("fit", "--config", config, "--report.enabled", "false", "--trainer.max_steps", 1).exit_code == 0
    checkpoint = tmp_path / "runs" / "grpo" / "checkpoints" / "last.ckpt"
    result = in_process("export", "--ckpt_path", checkpoint, "--output", tmp_path / "out", "--merge", "true")
    assert result.exit_code == 2
    assert "without LoRA: there is nothing to merge" in result.sentence
