"""What `validate` and `test` write: accuracy and call ratio with intervals, and every judged completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from itertools import groupby
from typing import Any

from relay_lightning.evaluation.bootstrap import bootstrap_interval, bootstrap_ratio_interval
from relay_lightning.evaluation.evaluate import EvalResult, Judged
from relay_lightning.evaluation.proportion import pass_at_k, wilson_interval


def held_out_fields(judged: Sequence[Judged]) -> dict[str, Any]:
    """Figures of k completions of every problem, in any order, as plain types.

    Intervals are of 95 %: Wilson's for the accuracy of one completion each, else the bootstrap over problems.
    """
    result = EvalResult(tuple(sorted(judged, key=_problem)))
    problems = [list(samples) for _, samples in groupby(result.completions, key=_problem)]
    num_correct = [sum(sample.is_correct for sample in samples) for samples in problems]
    num_samples = min(map(len, problems), default=0)
    if not num_samples:
        return {"num_problems": 0, "num_samples": 0}
    if num_samples == 1:
        accuracy_interval = wilson_interval(sum(num_correct), len(problems))
    else:
        accuracy_interval = bootstrap_interval([count / num_samples for count in num_correct])
    call_ratio_interval = bootstrap_ratio_interval(
        [float(sum(sample.num_teacher_tokens for sample in samples)) for samples in problems],
        [float(sum(sample.num_tokens for sample in samples)) for samples in problems],
    )
    return {
        "num_problems": len(problems),
        "num_samples": num_samples,
        "accuracy": result.accuracy,
        "accuracy_interval_95": list(accuracy_interval),
        "call_ratio": result.call_ratio,
        "call_ratio_interval_95": list(call_ratio_interval),
        f"avg@{num_samples}": result.accuracy,
        **{
            f"pass@{k}": sum(pass_at_k(num_samples, count, k) for count in num_correct) / len(problems)
            for k in _budgets(num_samples)
        },
        "unparsable_frac": result.unparsable_frac,
        "called_frac": result.called_frac,
        "calls_per_completion": result.calls_per_completion,
        "malformed_call_frac": result.malformed_call_frac,
        "mean_completion_tokens": result.mean_completion_tokens,
        "mean_teacher_tokens": result.mean_teacher_tokens,
        "columns": [field.name for field in fields(Judged)],
        "completions": [list(astuple(sample)) for sample in result.completions],
    }


def held_out_lines(figures: Mapping[str, Any]) -> list[str]:
    """The figures for a terminal."""
    if not figures["num_problems"]:
        return ["no problems"]
    lines = [f"{figures['num_problems']} problems, {figures['num_samples']} completions each"]
    for name in ("accuracy", "call_ratio"):
        low, high = figures[f"{name}_interval_95"]
        lines.append(f"{name.replace('_', ' ')} {figures[name]:.1%}, 95 % interval {low:.1%} to {high:.1%}")
    if figures["num_samples"] > 1:
        lines.append(", ".join(f"{name} {figures[name]:.1%}" for name in figures if name.startswith(("avg@", "pass@"))))
    return lines


def _budgets(num_samples: int) -> list[int]:
    """1, 2, 4, ... and all samples."""
    return sorted({2**power for power in range(num_samples.bit_length())} | {num_samples})


def _problem(judged: Judged) -> int:
    return judged.prompt_id
