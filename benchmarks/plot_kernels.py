"""A picture of the kernel benchmark: how much of its ceiling each op reaches on a device, its rivals beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

OURS = "relay_kernels"
OUR_COLOUR, THEIR_COLOUR = "#1b6ca8", "#b8c4ce"
BAR_HEIGHT_IN, MARGIN_IN, WIDTH_IN = 0.24, 0.9, 8.5


@dataclass(frozen=True, slots=True)
class Panel:
    """One op at one shape."""

    title: str
    ceiling: str
    shares: dict[str, float]
    """Of the ceiling, by contestant; at most 1 but for noise."""


def plot(path: Path) -> plt.Figure:
    """The picture of one results file. Raises ValueError when it has nothing to show."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    panels = latest_panels(rows)
    if not panels:
        raise ValueError(f"{path} has no green result of `python -m benchmarks.kernels`")
    return draw(panels, rows[-1]["device"])


def latest_panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """The last green measurement of each op and shape; those without a ceiling have no panel."""
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        if row["benchmark"] == "kernels" and row["gate"] == "green" and row["ceiling"] is not None:
            latest[row["op"], row["setting"], json.dumps(row["shape"])] = row
    return [_panel(row) for row in latest.values()]


def _panel(row: dict[str, Any]) -> Panel:
    shape = ", ".join(f"{name} {size:,}" for name, size in row["shape"].items())
    shares = {name: found["share_of_ceiling"] for name, found in row["contestants"].items() if name != row["ceiling"]}
    ceiling = "the copy bandwidth" if row["ceiling"] == "copy" else f"the {row['ceiling']}"
    small = "" if row["is_full_shape"] else ", small shape"
    return Panel(f"{row['op']}, {row['setting']} ({shape}{small})", ceiling, shares)


def draw(panels: Sequence[Panel], device: str) -> plt.Figure:
    """One panel under the other, bars to the right, ours on top and in colour."""
    heights = [len(panel.shares) * BAR_HEIGHT_IN + MARGIN_IN for panel in panels]
    figure, column = plt.subplots(
        len(panels), 1, figsize=(WIDTH_IN, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axes, panel in zip(column[:, 0], panels, strict=True):
        _draw_panel(axes, panel)
    figure.suptitle(device, fontsize=10)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    names = list(panel.shares)
    percents = [100 * share for share in panel.shares.values()]
    bars = axes.barh(
        names, percents, color=[OUR_COLOUR if name == OURS else THEIR_COLOUR for name in names], height=0.7
    )
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(panel.title, fontsize=8, loc="left")
    axes.set_xlabel(f"% of {panel.ceiling}", fontsize=8)
    axes.set_xlim(0, max(105, 1.1 * max(percents)))
    axes.tick_params(labelsize=8)
    axes.axvline(100, color="grey", linestyle="--", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
