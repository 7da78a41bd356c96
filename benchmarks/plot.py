"""Draws a GRPO run: accuracy and call ratio over its optimiser steps.

    python -m benchmarks.plot runs/grpo docs/training.png        (needs the extra `plot`)

Reads `rollouts.jsonl`, so the curves are of the sampled rollouts that were trained on, not of greedy evaluation.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

STUDENT_COLOUR, TEACHER_COLOUR = "#2563eb", "#d97706"


@dataclass(slots=True)
class StepTotals:
    """Sums over the completions of one rollout."""

    num_completions: int = 0
    num_correct: int = 0
    num_tokens: int = 0
    num_teacher_tokens: int = 0


def read_totals(path: Path) -> dict[int, StepTotals]:
    """Totals by the step that the rollout was decoded at, in order."""
    totals: dict[int, StepTotals] = defaultdict(StepTotals)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            total = totals[row["step"]]
            total.num_completions += 1
            total.num_correct += row["is_correct"]
            total.num_tokens += len(row["token_ids"])
            total.num_teacher_tokens += sum(stop - start for _, start, stop, *_ in row["spans"])
    return dict(sorted(totals.items()))


def smooth(values: list[float], window: int = 5) -> list[float]:
    """Centred running mean; shorter at the ends."""
    half = window // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def draw(totals: dict[int, StepTotals], out: Path) -> None:
    """Writes the picture to `out`; its suffix decides the format."""
    import matplotlib.pyplot as plt

    steps = list(totals)
    curves = {
        "accuracy of the rollouts (%)": (
            [100 * total.num_correct / total.num_completions for total in totals.values()],
            STUDENT_COLOUR,
        ),
        "tokens written by the teacher (%)": (
            [100 * total.num_teacher_tokens / max(1, total.num_tokens) for total in totals.values()],
            TEACHER_COLOUR,
        ),
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), dpi=130, layout="constrained")
    for axis, (title, (values, colour)) in zip(axes, curves.items(), strict=True):
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
        axis.plot(steps, smooth(values), color=colour, linewidth=2)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xlabel("optimiser step")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="run folder of a GRPO stage")
    parser.add_argument("out", type=Path, help="picture to write (.png, .svg, .pdf)")
    arguments = parser.parse_args()
    path = arguments.run / "rollouts.jsonl"
    if not path.exists():
        parser.error(f"{path} does not exist; name the folder of a GRPO run")
    totals = read_totals(path)
    if not totals:
        parser.error(f"{path} holds no rollouts")
    draw(totals, arguments.out)


if __name__ == "__main__":
    main()
