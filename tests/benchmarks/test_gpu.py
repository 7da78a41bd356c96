"""`python -m benchmarks.gpu`: its clock, its bars, and its parts at minute shapes on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import harness
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import batch_one, memory
from benchmarks.gpu.__main__ import Part, run_all, run_here
from benchmarks.gpu.batch_one import weight_bytes
from benchmarks.gpu.scale import Scale, bar, text_tokenizer
from relay_lightning.relay.protocol import CallProtocol

TINY = Scale.of(torch.device("cpu"))
FULL = replace(TINY, is_full=True)


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Runs a part; returns the lines it has written."""
    monkeypatch.setattr(harness, "RESULTS", tmp_path)

    def run(name):
        run_here(name, TINY)
        [path] = tmp_path.iterdir()
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


def test_a_part_that_fails_or_has_no_time_costs_the_others_nothing():
    todo = {
        "broken": Part(("-c", "raise SystemExit(3)"), 60),
        "endless": Part(("-c", "import time; time.sleep(600)"), 0.2),
        "sound": Part(("-c", "pass"), 60),
    }
    assert run_all(todo, budget_s=300) == {"broken": "failed (3)", "endless": "ended", "sound": "done"}
    assert run_all(todo, budget_s=1) == dict.fromkeys(todo, "skipped")


def test_the_parts_that_have_bars_get_their_whole_time_within_nine_minutes():
    named = program.parts(torch.device("cuda"))
    first = list(named)[: 1 + len(program.MEASURES)]
    assert set(first) == {"kernels", *program.MEASURES}
    assert sum(named[name].limit_s for name in first) <= program.BUDGET_S < 9 * 60


def test_a_bar_is_open_where_the_shape_is_not_its_own_or_the_figure_is_missing():
    assert bar("x", 2.0, 1.0, TINY)["word"] == "open"
    assert bar("x", None, 1.0, FULL)["word"] == "open"
    assert [bar("x", value, 1.0, FULL)["word"] for value in (0.9, 1.0)] == ["not met", "met"]
    assert [bar("x", value, 1.0, FULL, is_upper=True)["word"] for value in (1.0, 1.1)] == ["met", "not met"]


def test_a_random_model_writes_nothing_that_is_not_text():
    tokenizer = text_tokenizer()
    model = TINY.random_model("8B", tokenizer)
    ids = torch.arange(64)[None] % 50
    best = set(model(input_ids=ids).logits[0].argmax(-1).tolist())
    assert best.isdisjoint(tokenizer.all_special_ids)
    assert max(best) < len(tokenizer)


@pytest.mark.parametrize(("name", "gigabytes"), [("0.6B", 1.19), ("1.7B", 3.44), ("8B", 15.1)])
def test_a_token_reads_all_weights_but_an_embedding_that_is_not_the_head_too(name, gigabytes):
    on_meta = replace(FULL, device=torch.device("meta"))  # The published architecture, without memory.
    model = on_meta.random_model(name, text_tokenizer())
    assert weight_bytes(model) / 1e9 == pytest.approx(gigabytes, rel=0.01)


def test_the_embedded_tokenizer_serves_the_published_vocabulary():
    tokenizer = text_tokenizer()
    protocol = CallProtocol().compile(tokenizer, FULL.config("8B", tokenizer).vocab_size)
    [span] = protocol.scan(tokenizer.encode("<call>12</call>", add_special_tokens=False))
    assert span.n == 12


@pytest.mark.slow
def test_one_completion_at_a_time_is_measured_in_both_ways(measure):
    lines = measure("batch_one")
    assert [(line["model"], line["way"]) for line in lines] == [
        (model, way) for way in ("relay", "transformers") for model in ("1.7B", "0.6B", "8B")
    ]
    assert {line.get("word") for line in lines} == {"open", None}
    assert all(line["tokens_per_s"] > 0 for line in lines)


def test_a_rollout_is_measured_in_all_ways_with_the_calls_that_were_scripted(measure):
    alone, teacher, relay, short, released = measure("rollout")
    assert [line["way"] for line in (alone, teacher, relay)] == ["student alone", "teacher's share alone", "relay"]
    assert relay["num_calls"] == TINY.num_completions * TINY.num_calls
    assert relay["teacher_share"] == pytest.approx(TINY.num_calls * TINY.call_tokens / TINY.completion_tokens)
    assert short["num_calls"] == released["num_calls"] == TINY.max_num_seqs
    assert released["word"] == "open"


@pytest.mark.slow
def test_memory_that_runs_out_is_a_bar_not_met_and_the_end_of_its_lengths(measure, monkeypatch):
    pytest.importorskip("bitsandbytes")

    def run_out(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(memory, "_update", run_out)
    lines = measure("memory")
    assert {line["completion_tokens"] for line in lines} == {TINY.train_tokens[0]}
    assert {line["value"] for line in lines} == {"no room"}


@pytest.mark.slow
def test_a_rival_that_fails_is_noted_beside_the_others(measure, monkeypatch):
    def broken(*_):
        raise RuntimeError("does not compile\nlong story")

    monkeypatch.setattr(batch_one, "generate_way", broken)
    assert [line.get("failed") for line in measure("batch_one")] == [None] * 3 + ["RuntimeError: does not compile"] * 3


@pytest.mark.slow
def test_the_memory_of_both_phases_is_measured_at_every_length(measure):
    pytest.importorskip("bitsandbytes")
    lines = measure("memory")
    short, *_ = lengths = TINY.train_tokens
    assert [(line["student"], line["weights"], line["completion_tokens"]) for line in lines] == [
        ("0.6B", "nf4", short),
        *(("1.7B", "nf4", length) for length in lengths),
        ("0.6B", "bf16", short),
    ]
    assert all(line["update_peak_bytes"] is None for line in lines)  # nobody counts on a CPU
