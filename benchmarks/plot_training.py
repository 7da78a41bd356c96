"""A picture of what a run learnt: accuracy and call ratio over the optimiser steps, from rollouts and summary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from relay_lightning.json_lines import parse_row, read_rows

NUM_SMOOTHED_STEPS = 5
"""Steps that a drawn point is the mean of; one step's 128 samples scatter by a few per cent."""
ACCURACY_COLOUR, CALL_COLOUR = "#1b6ca8", "#b5179e"
LABEL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "ha": "right"}


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What the samples of one rollout show."""

    step: int
    accuracy: float
    call_ratio: float


def read_steps(paths: Sequence[Path]) -> list[StepFigures]:
    """Figures of every rollout in `rollouts*.jsonl`, in order; the files of several processes count together.

    Raises ValueError naming the file and line of a row that is damaged or no rollout.
    """
    totals: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for path in paths:
        for line_number, (_, row) in enumerate(read_rows(path), start=1):
            if not row.keys() >= {"step", "is_correct", "token_ids", "call_ratio"}:
                raise ValueError(f"{path}:{line_number} is no rollout of a run")
            total = totals[row["step"]]
            total[0] += 1
            total[1] += row["is_correct"]
            total[2] += len(row["token_ids"])
            total[3] += row["call_ratio"] * len(row["token_ids"])
    return [
        StepFigures(step, correct / samples, teacher_tokens / max(tokens, 1))
        for step, (samples, correct, tokens, teacher_tokens) in sorted(totals.items())
    ]


def smooth(values: Sequence[float]) -> list[float]:
    """Trailing means of `NUM_SMOOTHED_STEPS` values."""
    windows = [values[max(0, end - NUM_SMOOTHED_STEPS) : end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def draw(steps: Sequence[StepFigures], summary: dict[str, Any]) -> plt.Figure:
    """Two panels over the steps: accuracy above, the teacher's share of the tokens below."""
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7.5, 5.2), height_ratios=(3, 2))
    positions = [figures.step for figures in steps]
    draw_line(above, positions, [100 * figures.accuracy for figures in steps], ACCURACY_COLOUR)
    draw_line(below, positions, [100 * figures.call_ratio for figures in steps], CALL_COLOUR)
    last = summary.get("step", positions[-1])
    for key, title, style in (("student_alone", "student alone", ":"), ("teacher_alone", "teacher alone", "--")):
        if key in summary:
            level = 100 * summary[key]["accuracy"]
            above.axhline(level, color="grey", linestyle=style, linewidth=1)
            above.annotate(f"{title} {level:.0f} %", (last, level), xytext=(0, 3), **LABEL)
    for key, position in (("relay_before", 0), ("relay_after", last)):
        if key in summary:
            above.plot(position, 100 * summary[key]["accuracy"], "o", color=ACCURACY_COLOUR)
            below.plot(position, 100 * summary[key]["call_ratio"], "o", color=CALL_COLOUR)
    above.set(ylabel="accuracy, %", ylim=(0, 100), title="training samples (line) and held-out problems, greedy (dots)")
    below.set(ylabel="tokens by the teacher, %", xlabel="optimiser step", ylim=(0, None))
    above.title.set_fontsize(9)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.tight_layout()
    return figure


def draw_line(axes: Axes, positions: Sequence[int], values: Sequence[float], colour: str) -> None:
    """The values faintly, their trailing mean on top."""
    axes.plot(positions, values, color=colour, alpha=0.25, linewidth=1)
    axes.plot(positions, smooth(values), color=colour, linewidth=2)


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a finished run, else an empty one. Raises ValueError for a damaged file."""
    return parse_row(path.read_text(encoding="utf-8", errors="surrogateescape"), str(path)) if path.exists() else {}


def plot(run_folder: Path) -> plt.Figure:
    """The picture of one run folder. Raises ValueError for one without rollouts."""
    steps = read_steps(sorted(run_folder.glob("rollouts*.jsonl")))
    if not steps:
        raise ValueError(f"{run_folder} has no rollouts.jsonl")
    return draw(steps, read_summary(run_folder / "summary.json"))
