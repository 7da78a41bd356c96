"""A student whose weights are spread over processes decodes and trains as one that is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from training_processes import Training, compare, final_checkpoint, train_all

from relay_lightning.models.lora import LoRASettings
from relay_lightning.modules.sharded_strategy import require_supported

EVERYTHING = {"prompts_per_rollout": 8, "steps_per_rollout": 2}


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_sharded_processes_take_the_steps_of_one(small_pair: Any, tmp_path: Path, num_processes: int) -> None:
    """Rollouts of different length on every process: nobody may wait for weights while another decodes."""
    lora = {"lora": LoRASettings(rank=2), "beta": 0.1}
    variants: dict[str, dict[str, Any]] = {
        "full": {"data": EVERYTHING, "module": {"beta": 0.1, "scale_rewards": "batch"}},
        "recomputed": {"data": EVERYTHING, "module": {"old_log_probs": "recompute"}, "accumulate": 2, "max_steps": 2},
        "clipped": {"data": EVERYTHING, "trainer": {"gradient_clip_val": 0.01}},
        "adapters": {"data": EVERYTHING, "module": lora},
        "checkpointed": {"data": EVERYTHING, "module": {"gradient_checkpointing": True}},
        "warm-up": {"stage": "warmup", "data": {"batch_size": 8}},
        # 3 prompts each for 2 processes of 5: the last batch of one is empty.
        "validated": {
            "data": {"num_val_problems": 5, "eval_batch_size": 2},
            "trainer": {"limit_val_batches": 1.0, "val_check_interval": 1},
        },
    }
    trainings = [
        Training(small_pair, tmp_path / name, strategy="fsdp2", **options) for name, options in variants.items()
    ]
    compare(trainings, num_processes)


@pytest.mark.slow
def test_a_sharded_run_resumes_from_its_own_checkpoint_and_from_that_of_one_process(
    small_pair: Any, tmp_path: Path
) -> None:
    """A checkpoint is the whole student either way. At the end of a rollout the number of processes may change."""
    whole = Training(small_pair, tmp_path / "whole", strategy="fsdp2", data={"prompts_per_rollout": 8}, max_steps=3)
    alone = replace(whole, folder=tmp_path / "alone")
    train_all([alone], 1)
    resumed = [
        replace(whole, folder=tmp_path / f"from-{source.folder.name}", resume_from=source.folder / "step=1.ckpt")
        for source in (whole, alone)
    ]
    train_all([whole, *resumed], 2)
    expected = final_checkpoint(whole)["state_dict"]
    assert expected.keys() == final_checkpoint(alone)["state_dict"].keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in _final_weights(resumed[0]).items())
    torch.testing.assert_close(_final_weights(resumed[1]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [FSDPStrategy, ModelParallelStrategy])
def test_sharding_that_cannot_decode_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=f"trainer.strategy is {make.__name__}.*set trainer.strategy to fsdp2"):
        require_supported(make())


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_gpus_take_the_steps_of_one(small_pair: Any, tmp_path: Path, strategy: str) -> None:
    trainer = {"accelerator": "gpu", "limit_val_batches": 1.0, "num_sanity_val_steps": 1}
    compare([Training(small_pair, tmp_path, strategy=strategy, data=EVERYTHING, trainer=trainer, max_steps=2)], 2)


def _final_weights(training: Training) -> dict[str, torch.Tensor]:
    return final_checkpoint(training)["state_dict"]
