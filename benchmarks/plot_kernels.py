"""A picture of the kernel benchmark: how much of its ceiling each op reaches on a GPU, its rivals beside it; on a CPU,
at small shapes that fit its caches, how long each takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from relay_lightning.json_lines import read_rows

OURS = "relay_kernels"
OUR_COLOUR, THEIR_COLOUR = "#1b6ca8", "#b8c4ce"
NUM_COLUMNS = 2
BAR_HEIGHT_IN, MARGIN_IN, WIDTH_IN = 0.2, 0.8, 11.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One op at one shape."""

    title: str
    unit: str
    values: dict[str, float]
    """By contestant: per cent of a ceiling, or microseconds."""
    is_share: bool


def plot(path: Path) -> plt.Figure:
    """The picture of one results file. Raises ValueError when it has nothing to show."""
    rows = [row for _, row in read_rows(path) if row.get("benchmark") == "kernels"]
    panels = latest_panels(rows)
    if not panels:
        raise ValueError(f"{path} has no green result of `python -m benchmarks.kernels`")
    return draw(panels, rows[-1]["device"])


def latest_panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """The last green result of each op and shape, but of a GPU those without a ceiling, of a CPU the references."""
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        if row["benchmark"] == "kernels" and row["gate"] == "green":
            latest[row["op"], row["setting"], json.dumps(row["shape"])] = row
    return [
        _panel(row)
        for row in latest.values()
        if (row["ceiling"] if row["is_full_shape"] else row["backend"] != "reference")
    ]


def _panel(row: dict[str, Any]) -> Panel:
    shape = ", ".join(f"{name} {size:,}" for name, size in row["shape"].items())
    title, found = f"{row['op']}, {row['setting']} ({shape})", row["contestants"]
    if not row["is_full_shape"]:
        return Panel(title, "us", {name: 1e6 * each["p50_s"] for name, each in found.items()}, is_share=False)
    shares = {name: 100 * each["share_of_ceiling"] for name, each in found.items() if name != row["ceiling"]}
    ceiling = "the copy bandwidth" if row["ceiling"] == "copy" else f"the {row['ceiling']}"
    return Panel(title, f"% of {ceiling}", shares, is_share=True)


def draw(panels: Sequence[Panel], device: str) -> plt.Figure:
    """Panels in rows of `NUM_COLUMNS`, bars to the right, ours on top and in colour."""
    rows = [panels[start : start + NUM_COLUMNS] for start in range(0, len(panels), NUM_COLUMNS)]
    heights = [max(len(panel.values) for panel in row) * BAR_HEIGHT_IN + MARGIN_IN for row in rows]
    figure, grid = plt.subplots(
        len(rows),
        NUM_COLUMNS,
        figsize=(WIDTH_IN, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel)
    figure.suptitle(device, fontsize=10)
    return figure


def _draw_panel(axes: Axes, panel: Panel) -> None:
    names, values = list(panel.values), list(panel.values.values())
    colours = [OUR_COLOUR if name == OURS else THEIR_COLOUR for name in names]
    axes.bar_label(axes.barh(names, values, color=colours, height=0.7), fmt="%.1f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(panel.title, fontsize=8, loc="left")
    axes.set_xlabel(panel.unit, fontsize=8)
    axes.set_xlim(0, max(105 if panel.is_share else 0, 1.1 * max(values)))
    axes.tick_params(labelsize=8)
    if panel.is_share:
        axes.axvline(100, color="grey", linestyle="--", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
