"""What a run says: readable in a file, complete in the loggers, and with the next commands at its end."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from relay_lightning import __version__


@pytest.fixture
def fit(in_process, config):
    run = in_process("fit", "--config", config, "--printer.every_n_train_steps", 3, "--trainer.log_every_n_steps", 1)
    assert run.exit_code == 0, run.errors
    return run


@pytest.fixture
def events(fit, tmp_path):
    """The run's TensorBoard events, read back."""
    assert fit.exit_code == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(tmp_path / "runs" / "grpo" / "tensorboard"))
    accumulator.Reload()
    return accumulator


def text(events, tag: str) -> str:
    return events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()


@pytest.mark.slow
def test_a_file_gets_plain_lines_with_the_authors_in_text(start, config):
    output, errors = start("fit", "--config", config, "--printer.every_n_train_steps", 3).communicate()
    assert "\x1b" not in output + errors
    assert "\r" not in output + errors
    assert re.search(r"^training 6/6 steps, reward \S+, accuracy \S+%, call ratio \S+%, ", errors, re.M)
    assert re.search(r"<call>\d</call>(\[\d of \d\])?<teacher>[^<]+</teacher>", errors)
    assert "student alone 8/8 problems" in errors
    for noise in ("LeafSpec", "Total FLOPs"):
        assert noise not in output + errors


def test_loggers_get_hyperparameters_rates_rollouts_and_the_table(events, tmp_path):
    hyperparameters = yaml.safe_load((tmp_path / "runs" / "grpo" / "tensorboard" / "hparams.yaml").read_text())
    assert hyperparameters["model"]["init_args"]["group_size"] == 4
    assert [event.value for event in events.Scalars("lr-AdamW")] == pytest.approx([1e-3] * 6)
    rollouts = text(events, "rollouts/text_summary")
    assert "<teacher>" in rollouts
    assert all(line.startswith("    ") for line in rollouts.splitlines())  # a code block: no markup of a model's acts
    assert "| relay after |" in text(events, "summary/text_summary")


def test_commands_at_the_end_of_a_run_run(fit, in_process, tmp_path):
    commands = [shlex.split(line) for line in fit.output.partition("next:\n")[2].splitlines()]
    own = [command[3:] for command in commands if command[:3] == ["python", "-m", "relay_lightning"]]
    assert [command[0] for command in own] == ["test", "export", "generate"]
    for command in own:
        result = in_process(*command)
        assert result.exit_code == 0, result.errors
    assert "tokens by the teacher" in result.errors
    assert (tmp_path / "runs" / "grpo" / "test.json").exists()
    assert ["tensorboard", "--logdir", "runs/grpo/tensorboard"] in commands


def test_command_line_says_its_version_and_where_a_modules_options_are(in_process):
    assert in_process("--version").output == f"relay-lightning {__version__}\n"
    shown = " ".join(in_process("fit", "--help").output.split())
    assert "python -m relay_lightning fit --model.help GRPOModule" in shown
    assert "--model.group_size" in in_process("fit", "--model.help", "GRPOModule").output
