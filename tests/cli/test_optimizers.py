"""Optimisers of bitsandbytes, named in a configuration."""

from __future__ import annotations

import pytest
import torch
import yaml

pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("name", ["AdamW8bit", pytest.param("PagedAdamW8bit", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_a_resumed_run_ends_in_the_same_weights_when_the_optimiser_keeps_eight_bits(in_process, config, tmp_path, name):
    settings = yaml.safe_load(config.read_text())
    settings["trainer"] |= {"max_steps": 3, "deterministic": True}
    settings["model"]["init_args"]["optimizer"]["class_path"] = f"bitsandbytes.optim.{name}"
    config.write_text(yaml.safe_dump(settings))
    runs = (
        ("--run_dir", "whole"),
        ("--run_dir", "parts", "--trainer.max_steps", "1"),
        ("--run_dir", "parts", "--ckpt_path", "last"),
    )
    for arguments in runs:
        result = in_process("fit", "--config", config, *arguments)
        assert result.exit_code == 0, result.errors
    whole, parts = (
        torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "parts")
    )
    assert torch.uint8 in dtypes(whole["optimizer_states"])
    for weight, value in whole["state_dict"].items():
        assert torch.equal(value, parts["state_dict"][weight]), weight


def dtypes(state: object) -> set[torch.dtype]:
    """Of all tensors in nested lists and dictionaries."""
    if isinstance(state, torch.Tensor):
        return {state.dtype}
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return {dtype for value in values for dtype in dtypes(value)}
