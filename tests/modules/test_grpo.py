"""GRPOModule under a real Trainer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from relay_lightning.models.lora import LoRASettings
from relay_lightning.modules.grpo import GRPOModule

SGD = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}


class Metrics(Callback):
    """Keeps what was logged at every optimiser step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ARG002
        self.steps.append({name: float(value) for name, value in trainer.logged_metrics.items()})


@pytest.fixture
def fit(
    make_module: Any, make_data: Any, make_trainer: Any
) -> Callable[..., tuple[GRPOModule, list[dict[str, float]]]]:
    """Trains and gives the module with the metrics of every micro-batch."""

    def fit(
        max_steps: int = 2, *, trainer: Any = None, data: Any = None, **options: Any
    ) -> tuple[GRPOModule, list[dict[str, float]]]:
        metrics, settings = Metrics(), dict(trainer or {})
        callbacks = [*settings.pop("callbacks", []), metrics]
        module = make_module(**options)
        make_trainer(max_steps, callbacks=callbacks, **settings).fit(module, make_data(**(data or {})))
        return module, metrics.steps

    return fit


def weights(module: LightningModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_the_trainers_log_probs_equal_the_samplers_before_the_first_update(fit: Any) -> None:
    _, steps = fit(1)
    assert 0.0 <= steps[0]["sampling/sampling_logp_difference/max"] < 1e-4


def test_recomputed_log_probs_equal_the_samplers_when_the_student_drops_out(fit: Any) -> None:
    """Adapters change nothing, and so drop nothing, before the first update: the second rollout shows it."""
    _, steps = fit(2, lora=LoRASettings(rank=4, dropout=0.5), old_log_probs="recompute", **SGD)
    assert 0.0 <= steps[1]["sampling/sampling_logp_difference/max"] < 1e-4


def test_metrics_carry_the_names_users_know(fit: Any) -> None:
    _, (first, second) = fit(2, beta=0.1)
    expected = {
        "completions/mean_length", "completions/clipped_ratio", "frac_reward_zero_std", "reward", "reward_std",
        "entropy", "kl", "clip_ratio/region_mean", "sampling/sampling_logp_difference/mean", "relay/call_ratio",
        "relay/calls_per_completion", "relay/called_frac", "relay/malformed_call_frac", "relay/teacher_tokens",
        "relay/teacher_prefill_tokens", "train/accuracy", "reward_case/student_solvable",
        "reward_case/teacher_dependent", "reward_case/teacher_unsolvable", "time/rollout_s", "time/reward_s", "loss",
        "grad_norm",
    }  # fmt: skip
    assert expected <= first.keys()
    assert second["time/update_s"] > 0
    assert (
        sum(first[f"reward_case/{case}"] for case in ("student_solvable", "teacher_dependent", "teacher_unsolvable"))
        == 1
    )
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert first["relay/call_ratio"] > 0


def test_groups_keep_prompt_order_and_their_sample_indices(fit: Any) -> None:
    module, _ = fit(1)
    assert len(module.last_groups) == 4
    for group in module.last_groups:
        completions = [rollout.completion for rollout in group.rollouts]
        assert [completion.sample_index for completion in completions] == [0, 1, 2, 3]
        assert {completion.prompt_id for completion in completions} == {group.prompt.prompt_id}
        assert sum(rollout.advantage for rollout in group.rollouts) == pytest.approx(0.0, abs=1e-4)


def test_every_rollout_draws_afresh_and_a_second_run_draws_the_same(fit: Any) -> None:
    one_prompt = {"prompts_per_rollout": 1, "num_train_problems": 1}
    texts = []
    for max_steps in (1, 2, 2):
        module, _ = fit(max_steps, data=one_prompt, group_size=8, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        texts.append([rollout.completion.text for rollout in module.last_groups[0].rollouts])
    assert texts[0] != texts[1]
    assert texts[1] == texts[2]


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_accumulating_over_micro_batches_gives_the_step_of_the_whole_batch(fit: Any, loss_type: str) -> None:
    whole, _ = fit(2, loss_type=loss_type, **SGD)
    parts, _ = fit(2, loss_type=loss_type, trainer={"accumulate_grad_batches": 4}, **SGD)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)


def test_limit_train_batches_cuts_an_epoch_and_the_next_one_goes_on(fit: Any) -> None:
    limited = {"limit_train_batches": 1, "max_epochs": 3}
    module, steps = fit(-1, trainer=limited)
    assert len(steps) == 3
    assert module.trainer.global_step == 3


def test_a_rollout_without_signal_leaves_the_weights_alone(fit: Any, make_module: Any, tmp_path: Path) -> None:
    problems = tmp_path / "unsolvable.jsonl"
    problems.write_text('{"question": "How many kebu?", "answer": "999"}\n' * 4)
    module, steps = fit(2, data={"train": str(problems)}, teacher=None, **SGD)
    untrained = make_module(teacher=None)
    untrained.configure_model()
    assert steps[0]["frac_reward_zero_std"] == 1.0
    torch.testing.assert_close(weights(module), weights(untrained), rtol=0, atol=0)


def test_a_student_without_a_teacher_never_calls(fit: Any) -> None:
    _, steps = fit(2, teacher=None)
    assert all(step["relay/call_ratio"] == 0 and step["relay/called_frac"] == 0 for step in steps)


def test_training_raises_the_reward(fit: Any) -> None:
    """The premise of everything: on a problem with a fixed answer the student learns to give it."""
    one_prompt = {"prompts_per_rollout": 1, "num_train_problems": 1}
    _, steps = fit(35, data=one_prompt, group_size=16, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3))
    accuracies = [step["train/accuracy"] for step in steps]
    assert sum(accuracies[:5]) / 5 < 0.6
    assert sum(accuracies[-10:]) / 10 > 0.75


class Gradients(Callback):
    """Keeps the names of the weights whose gradient is not zero."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ARG002
        named = pl_module.named_parameters()
        self.names |= {name for name, weight in named if weight.grad is not None and weight.grad.any()}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_every_weight_gets_a_gradient_in_lower_precision(fit: Any, precision: str) -> None:
    """Autocast keeps cast weights; those cast while decoding without gradients would silence the training step."""
    gradients = Gradients()
    module, steps = fit(1, trainer={"precision": precision, "callbacks": [gradients]}, beta=0.1, **SGD)
    assert gradients.names == {name for name, _ in module.named_parameters()}
    assert steps[0]["sampling/sampling_logp_difference/mean"] < 0.05


def test_clipping_bounds_the_update(fit: Any, make_module: Any) -> None:
    untrained = make_module()
    untrained.configure_model()
    module, steps = fit(1, trainer={"gradient_clip_val": 0.01}, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    before, after = weights(untrained), weights(module)
    names = [name for name, _ in untrained.named_parameters()]
    length = torch.stack([(after[name] - before[name]).square().sum() for name in names]).sum().sqrt()
    assert steps[0]["grad_norm"] > 0.01
    assert length == pytest.approx(0.01, rel=1e-2)


def test_dynamic_sampling_replaces_groups_without_signal(fit: Any) -> None:
    options = {"group_size": 2, "teacher": None, "reward": "simple", **SGD}
    data = {"prompts_per_rollout": 8}
    _, plain = fit(1, data=data, **options)
    module, dynamic = fit(1, data=data, dynamic_sampling=6, **options)
    assert plain[0]["frac_reward_zero_std"] > 0
    assert dynamic[0]["frac_reward_zero_std"] < plain[0]["frac_reward_zero_std"]
    assert dynamic[0]["sampling_rounds"] > 1
    assert len(module.last_groups) == 8


def test_validation_and_test_report_accuracy_and_calls(make_module: Any, make_data: Any, make_trainer: Any) -> None:
    trainer, data = make_trainer(1, limit_val_batches=1.0), make_data()
    (validated,) = trainer.validate(make_module(), data, verbose=False)
    (tested,) = trainer.test(make_module(), data, verbose=False)
    for stage, metrics in (("val", validated), ("test", tested)):
        assert {f"{stage}/{name}" for name in ("accuracy", "call_ratio", "malformed_call_frac")} <= metrics.keys()
        assert 0 <= metrics[f"{stage}/accuracy"] <= 1
    # The same problems and the same greedy decoding.
    assert validated["val/accuracy"] == tested["test/accuracy"]


def test_limits_are_the_students_own_unless_others_are_given(
    small_pair: Any, make_module: Any, make_data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    student = shutil.copytree(small_pair.student, tmp_path / "student")
    (student / "relay_config.json").write_text('{"max_calls": 0, "eos_policy": "return", "spent_calls": "mask_open"}')

    def calls(**options: Any) -> float:
        trainer, module = make_trainer(1), make_module(student=str(student), **options)
        trainer.fit(module, make_data())
        assert module.decoding.limits.eos_policy == "return"
        assert module.decoding.limits.spent_calls == "mask_open"
        return trainer.callback_metrics["relay/calls_per_completion"].item()

    assert calls() == 0
    assert calls(max_calls=None) > 0


def test_prediction_gives_a_completion_per_problem(make_module: Any, make_data: Any, make_trainer: Any) -> None:
    (batch,) = make_trainer(1).predict(make_module(), make_data())
    assert [completion.prompt_id for completion in batch.completions] == list(range(8))
    assert [prompt.prompt_id for prompt in batch.prompts] == list(range(8))


def test_a_checkpoint_holds_the_student_alone_and_plain_types(
    make_module: Any, make_data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    module = make_module(beta=0.1)
    make_trainer(1, saves=tmp_path).fit(module, make_data())
    checkpoint = torch.load(tmp_path / "step=1.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"student.{name}" for name in module.student.state_dict()}
    assert "hyper_parameters" not in checkpoint
    assert module.engine.teacher is not None  # there was one to leak


def test_a_checkpoint_holds_adapters_alone_with_lora_and_restores_them(
    make_module: Any, make_data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    lora = LoRASettings(rank=2)
    module = make_module(lora=lora)
    make_trainer(2, saves=tmp_path).fit(module, make_data())
    saved = torch.load(tmp_path / "step=2.ckpt", weights_only=True)["state_dict"]
    assert saved
    assert all("lora_" in name for name in saved)
    restored = make_module(lora=lora)
    make_trainer(2).fit(restored, make_data(), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    torch.testing.assert_close(weights(restored), weights(module), rtol=0, atol=0)


def test_a_checkpoint_of_another_student_is_refused(
    make_module: Any, make_data: Any, make_trainer: Any, tmp_path: Path
) -> None:
    make_trainer(1, saves=tmp_path).fit(make_module(), make_data())
    path = tmp_path / "step=1.ckpt"
    with pytest.raises(ValueError, match=r"does not fit the student .* weight student\..*lora_A.* is missing"):
        make_trainer(2).fit(make_module(lora=LoRASettings()), make_data(), ckpt_path=path, weights_only=True)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["student.model.norm.weight"] = torch.zeros(7)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"model\.norm\.weight has shape \[7\]"):
        make_trainer(2).fit(make_module(), make_data(), ckpt_path=path, weights_only=True)


class Poison(Callback):
    """Makes a weight, or a gradient, NaN at the second optimiser step."""

    def __init__(self, where: str) -> None:
        self.where = where

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:  # noqa: ARG002
        if self.where == "weight" and trainer.global_step == 1:
            pl_module.student.model.norm.weight.data[0] = torch.nan

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.where == "gradient" and trainer.global_step == 1:
            pl_module.student.model.norm.weight.grad[0] = torch.nan


@pytest.mark.parametrize(("where", "what"), [("weight", "loss"), ("gradient", "gradient norm")])
def test_nan_stops_training_and_keeps_the_last_good_checkpoint(
    make_module: Any, make_data: Any, make_trainer: Any, tmp_path: Path, where: str, what: str
) -> None:
    trainer = make_trainer(3, saves=tmp_path, callbacks=[Poison(where)])
    with pytest.raises(RuntimeError, match=f"The {what} is nan at optimiser step 1"):
        trainer.fit(make_module(), make_data(steps_per_rollout=4))
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=1.ckpt"]
    saved = torch.load(tmp_path / "step=1.ckpt", weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"rollout_is_mode": "token_mask"}, "old_log_probs: 'recompute'"),
    ],
)
def test_settings_that_cannot_work_are_refused(make_module: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_module(**options)


@pytest.mark.parametrize(
    ("num_steps", "num_micro_batches", "sentence"),
    [
        (3, 1, "16 completions of a rollout cannot be divided into 3 optimiser steps .* of 1 micro-batches"),
        (2, 3, "16 completions of a rollout cannot be divided into 2 optimiser steps .* of 3 micro-batches"),
        (1, 32, "16 completions .* of 32 micro-batches"),
    ],
)
def test_rollouts_that_cannot_be_divided_are_refused_before_models_are_loaded(
    make_module: Any, make_data: Any, make_trainer: Any, num_steps: int, num_micro_batches: int, sentence: str
) -> None:
    module, data = make_module(), make_data(steps_per_rollout=num_steps)
    with pytest.raises(ValueError, match=sentence):
        make_trainer(1, accumulate_grad_batches=num_micro_batches).fit(module, data)
    assert module.student is None


def test_a_learning_rate_schedule_advances_once_per_optimiser_step(fit: Any) -> None:
    schedule = {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)}
    module, _ = fit(3, trainer={"accumulate_grad_batches": 2}, **SGD, **schedule)
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.1 * 0.5**3)
