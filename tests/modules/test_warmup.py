"""WarmupModule under a real Trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from relay_lightning.data.sft import SelfSample, WarmupDataModule
from relay_lightning.engine.sampling import SamplingParams
from relay_lightning.modules.self_samples import fingerprint, read_self_samples, write_self_samples
from relay_lightning.modules.warmup import WarmupModule
from relay_lightning.relay.protocol import CallProtocol
from relay_lightning.types import Prompt


@pytest.fixture
def make_warmup(small_pair: Any, tmp_path: Path) -> Callable[..., WarmupModule]:
    def make(**options: Any) -> WarmupModule:
        settings = {
            "student": small_pair.teacher,  # the one that does not call yet
            "teacher": small_pair.teacher,
            "max_completion_tokens": 28,
            "samples_per_prompt": 8,
            "cache_dir": str(tmp_path / "cache"),
            "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        }
        return WarmupModule(**(settings | options))

    return make


@pytest.fixture
def make_sft_data(small_pair: Any) -> Callable[..., WarmupDataModule]:
    def make(**options: Any) -> WarmupDataModule:
        source = dict.fromkeys(("train", "val", "test"), small_pair.problems)
        settings = source | {"batch_size": 16, "command_free_share": 0.0, "max_digit_exponent": 0}
        return WarmupDataModule(**(settings | options))

    return make


def test_the_student_learns_to_call(make_warmup: Any, make_sft_data: Any, make_trainer: Any) -> None:
    module = make_warmup()
    before, data = make_trainer(1, limit_val_batches=1.0), make_sft_data()
    (untrained,) = before.validate(module, data, verbose=False)
    trainer = make_trainer(200, limit_val_batches=1.0, check_val_every_n_epoch=None, val_check_interval=200)
    trainer.fit(module, data)
    trained = trainer.callback_metrics
    assert untrained["val/sampled_calls_per_completion"] == 0
    assert trained["val/sampled_calls_per_completion"] > 0.3
    assert trained["val/sampled_malformed_call_frac"] < 0.5
    assert trained["val/sampled_call_ratio"] > 0


def test_samples_are_the_untrained_students_own_and_kept_on_disk(
    make_warmup: Any, make_sft_data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    module = make_warmup()
    make_trainer(1).fit(module, make_sft_data())
    (file,) = (tmp_path / "cache").glob("*.jsonl")
    samples = read_self_samples(file)
    assert len(samples) == 8 * 8
    protocol = CallProtocol().compile(module.tokenizer)
    assert not any(protocol.scan(sample.completion_token_ids) for sample in samples)
    changed_at = file.stat().st_mtime_ns
    make_trainer(1).fit(make_warmup(), make_sft_data())
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*")] == [changed_at]
    make_trainer(1).fit(make_warmup(seed=1), make_sft_data())
    assert len(list((tmp_path / "cache").glob("*.jsonl"))) == 2


def test_resumed_run_equals_uninterrupted_run(
    make_warmup: Any, make_sft_data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    def run(saves: Path, ckpt_path: Path | None = None) -> dict[str, Any]:
        trainer = make_trainer(6, saves=saves, accumulate_grad_batches=2)
        trainer.fit(make_warmup(), make_sft_data(), ckpt_path=ckpt_path, weights_only=True)
        checkpoint = torch.load(saves / "step=6.ckpt", weights_only=True)
        return {name: checkpoint[name] for name in ("state_dict", "optimizer_states")}

    whole = run(tmp_path / "whole")
    for step in (1, 4):  # a pass has four steps
        resumed = run(tmp_path / f"from-{step}", tmp_path / "whole" / f"step={step}.ckpt")
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_accumulating_over_micro_batches_gives_the_step_of_the_whole_batch(
    make_warmup: Any, make_sft_data: Any, make_trainer: Any
) -> None:
    states = []
    for accumulate_grad_batches in (1, 4):
        module = make_warmup(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        make_trainer(2, accumulate_grad_batches=accumulate_grad_batches).fit(module, make_sft_data())
        states.append(module.state_dict())
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "num_micro_batches", "sentence"),
    [({}, 3, "multiple of 3 micro-batches .* but is 16"), ({"batch_size": 65}, 1, "65, but there are 64 self-sampled")],
)
def test_steps_that_cannot_be_filled_or_divided_are_refused_before_samples_are_drawn(
    make_warmup: Any, make_sft_data: Any, make_trainer: Any, tmp_path: Path, options: dict[str, Any],
    num_micro_batches: int, sentence: str,
) -> None:  # fmt: skip
    trainer = make_trainer(1, accumulate_grad_batches=num_micro_batches)
    with pytest.raises(ValueError, match=sentence):
        trainer.fit(make_warmup(), make_sft_data(**options))
    assert not (tmp_path / "cache").exists()


def test_samples_survive_the_disk(tmp_path: Path) -> None:
    samples = [SelfSample((1, 2), (3,), 4), SelfSample((1,), (), None)]
    write_self_samples(tmp_path / "new" / "samples.jsonl", samples)
    assert read_self_samples(tmp_path / "new" / "samples.jsonl") == samples
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["samples.jsonl"]


def test_a_broken_cache_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(
        json.dumps({"prompt_token_ids": [1], "completion_token_ids": [2], "eos_token_id": 3}) + '\n{"x": 1}\n'
    )
    with pytest.raises(ValueError, match=r"samples\.jsonl:2 is not a self-sampled completion"):
        read_self_samples(path)


def test_the_fingerprint_tells_apart_whatever_makes_other_samples() -> None:
    weights = {"w": torch.arange(4.0)}
    prompts, sampling = [Prompt(0, (1, 2))], SamplingParams(16)
    options: dict[str, Any] = {"samples_per_prompt": 1, "seed": 0}
    prints = [
        fingerprint(weights, prompts, sampling, **options),
        fingerprint({"w": torch.tensor([0.0, 1.0, 2.0, 3.5])}, prompts, sampling, **options),
        fingerprint({"w": torch.arange(4.0).to(torch.bfloat16)}, prompts, sampling, **options),
        fingerprint(weights, [Prompt(1, (1, 2))], sampling, **options),
        fingerprint(weights, [Prompt(0, (1, 3))], sampling, **options),
        fingerprint(weights, prompts, SamplingParams(17), **options),
        fingerprint(weights, prompts, sampling, **(options | {"seed": 1})),
        fingerprint(weights, prompts, sampling, **(options | {"samples_per_prompt": 2})),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"w": torch.arange(4.0)}, list(prompts), SamplingParams(16), **options) == prints[0]
