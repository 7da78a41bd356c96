"""Lightning's own callbacks: each works with a relay module, or is refused in one sentence before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import CSVLogger

WORKING: list[dict[str, dict[str, Any]]] = [
    {
        "Checkpoint": {},
        "DeviceStatsMonitor": {},
        "EarlyStopping": {"monitor": "reward"},
        "LambdaCallback": {},
        "LearningRateMonitor": {},
        "ModelCheckpoint": {},
        "ModelSummary": {},
        "OnExceptionCheckpoint": {"dirpath": "saved"},
        "RichProgressBar": {},
        "SpikeDetection": {},
        "Timer": {"duration": "00:12:00:00"},
    },
    {"RichModelSummary": {}, "TQDMProgressBar": {}},
]
"""Callbacks and their arguments, in groups that can be used together."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "BackboneFinetuning": ({}, "freezes layers .* set model.lora"),
    "BatchSizeFinder": ({}, "set them in data"),
    "EMAWeightAveraging": ({}, "before its student is loaded"),
    "GradientAccumulationScheduler": ({"scheduling": {0: 2}}, "set trainer.accumulate_grad_batches"),
    "LearningRateFinder": ({}, "set lr of model.optimizer"),
    "ModelPruning": ({"pruning_fn": "l1_unstructured"}, "prunes the module before its student is loaded"),
    "StochasticWeightAveraging": ({"swa_lrs": 0.01}, "before its student is loaded"),
    "ThroughputMonitor": ({"batch_size_fn": len}, "logged without it"),
    "WeightAveraging": ({}, "before its student is loaded"),
}
"""Callback -> its arguments, and what is said of it."""
ABSTRACT = {"BaseFinetuning", "BasePredictionWriter", "Callback", "ProgressBar"}


@pytest.mark.parametrize("group", WORKING, ids=lambda group: f"{len(group)} together")
def test_callbacks_of_lightning_work(
    make_module: Any, make_data: Any, make_trainer: Any, tmp_path: Path, group: dict[str, dict[str, Any]]
) -> None:
    used = [getattr(callbacks, name)(**options) for name, options in group.items()]
    logger, shown = CSVLogger(tmp_path), {"enable_progress_bar": True, "enable_model_summary": True}
    trainer = make_trainer(2, saves=tmp_path, callbacks=used, logger=logger, **shown)
    trainer.fit(make_module(), make_data())
    assert trainer.global_step == 2
    assert (tmp_path / "step=2.ckpt").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_callbacks_that_cannot_work_are_refused(make_module: Any, make_data: Any, make_trainer: Any, name: str) -> None:
    options, sentence = REFUSED[name]
    module, trainer = make_module(), make_trainer(1, callbacks=[getattr(callbacks, name)(**options)])
    with pytest.raises(ValueError, match=f"trainer.callbacks has {name}, which .*{sentence}"):
        trainer.fit(module, make_data())
    assert module.student is None


def test_all_callbacks_of_lightning_were_tried() -> None:
    tried = {name for group in WORKING for name in group} | REFUSED.keys()
    assert tried | ABSTRACT == set(callbacks.__all__)
