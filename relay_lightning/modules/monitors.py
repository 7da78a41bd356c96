"""Names of the metrics that a run logs, and the check that callbacks and schedules follow one of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from lightning.pytorch import Trainer

TRAINING_METRICS = frozenset(
    {
        *("loss", "grad_norm", "entropy", "kl", "reward", "reward_std", "frac_reward_zero_std", "sampling_rounds"),
        "train/accuracy",
        *(f"answers/{name}_frac" for name in ("missing", "unparsable")),
        *(f"clip_ratio/{name}_mean" for name in ("high", "low", "region")),
        *(f"completions/{name}" for name in ("clipped_ratio", "mean_length")),
        *(f"relay/{name}" for name in ("call_ratio", "called_frac", "calls_per_completion", "malformed_call_frac")),
        *(f"relay/{name}" for name in ("requested_tokens_per_call", "teacher_prefill_tokens", "teacher_tokens")),
        *(f"reward_case/{name}" for name in ("student_solvable", "teacher_dependent", "teacher_unsolvable")),
        *(f"sampling/importance_sampling_ratio/{name}" for name in ("max", "mean", "min")),
        *(f"sampling/sampling_logp_difference/{name}" for name in ("max", "mean")),
        *(f"throughput/{name}_per_s" for name in ("samples", "tokens", "student_tokens", "teacher_tokens")),
        *(f"throughput/{name}" for name in ("update_flops_per_s", "update_tokens_per_s", "mfu")),
        *(f"time/{name}_s" for name in ("collate", "prefill", "reward", "rollout", "student", "teacher", "update")),
        "memory/peak_gb",
    }
)
"""Everything that training may log under some settings and on some device, the validation's metrics apart."""
VALIDATION = "val/"
"""Prefix of the metrics that are known only after a validation."""
LEARNING_RATE = "lr-"


def require_known_monitors(trainer: Trainer, validation_metrics: Collection[str]) -> None:
    """Raises ValueError for a callback of the trainer whose `monitor` is never logged."""
    if any(
        not type(callback).__module__.startswith(("relay_lightning.", "lightning.")) for callback in trainer.callbacks
    ):
        return  # a callback of the user's may log what another one follows
    for callback in trainer.callbacks:
        if monitor := getattr(callback, "monitor", None):
            require_known(monitor, type(callback).__name__, trainer, validation_metrics)


def require_known(monitor: str, owner: str, trainer: Trainer, validation_metrics: Collection[str]) -> None:
    """Raises ValueError if no metric is called `monitor`, or if it is one of a validation that is switched off."""
    if monitor.startswith(VALIDATION) and not trainer.limit_val_batches:
        raise ValueError(
            f"{owner} monitors {monitor}, but trainer.limit_val_batches is 0, so nothing is validated; "
            "raise it, or monitor a metric of training such as reward."
        )
    known = {*TRAINING_METRICS, *validation_metrics}
    if monitor not in known and not monitor.startswith(LEARNING_RATE):
        similar = difflib.get_close_matches(monitor, known, n=3, cutoff=0.4) or sorted(validation_metrics)[:3]
        raise ValueError(f"{owner} monitors {monitor!r}, which is not logged; similar are {', '.join(similar)}.")
