"""The figures a run ends in: `summary.json` and the printed table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.table import Table

from relay_lightning.evaluation.bootstrap import bootstrap_interval
from relay_lightning.evaluation.evaluate import EvalResult
from relay_lightning.evaluation.routers import RouterResult

TITLES = {
    "student_alone": "student alone",
    "teacher_alone": "teacher alone",
    "relay_before": "relay before",
    "relay_after": "relay after",
    "relay_before_sampled": "relay before, T = 1",
    "relay_after_sampled": "relay after, T = 1",
    "teacher_free_after": "teacher-free after",
    "random_query_router_matched": "random query router*",
    "random_token_router_same_budget": "random token router*",
}
"""Rows of the table in their order, by their key in the summary."""
HEADINGS = ("accuracy", "95 %", "call ratio", "calls", "tokens")
FOOTNOTE = "* matched to the relay: query in accuracy, token in call ratio"
REPORTED_PACKAGES = ("relay-lightning", "torch", "lightning", "transformers")


def result_fields(result: EvalResult) -> dict[str, Any]:
    """A result as plain types."""
    correct = [float(judged.is_correct) for judged in result.completions]
    return {
        "accuracy": result.accuracy,
        "accuracy_interval_95": list(bootstrap_interval(correct)),
        "unparsable_frac": result.unparsable_frac,
        "call_ratio": result.call_ratio,
        "num_problems": result.num_problems,
        "called_frac": result.called_frac,
        "calls_per_completion": result.calls_per_completion,
        "malformed_call_frac": result.malformed_call_frac,
        "mean_completion_tokens": result.mean_completion_tokens,
        "mean_teacher_tokens": result.mean_teacher_tokens,
        "requested_tokens_per_call": result.requested_tokens_per_call,
    }


def router_fields(router: RouterResult) -> dict[str, Any]:
    """A router's figures as plain types."""
    return asdict(router)


def relay_fields(results: Mapping[str, EvalResult], routers: Mapping[str, RouterResult]) -> dict[str, Any]:
    """Every measured figure, and those derived from them (None where a part is missing or nothing is to be divided)."""
    fields: dict[str, Any] = {name: result_fields(result) for name, result in results.items()}
    fields |= {name: router_fields(router) for name, router in routers.items()}
    fields["gap_recovered"] = gap_recovered(results)
    fields["teacher_token_reduction"] = teacher_token_reduction(results, routers)
    return fields


def gap_recovered(results: Mapping[str, EvalResult]) -> float | None:
    """(relay after - student alone) / (teacher alone - student alone), in accuracy."""
    if not {"student_alone", "teacher_alone", "relay_after"} <= results.keys():
        return None
    alone, teacher, after = (results[name].accuracy for name in ("student_alone", "teacher_alone", "relay_after"))
    return (after - alone) / (teacher - alone) if teacher != alone else None


def teacher_token_reduction(results: Mapping[str, EvalResult], routers: Mapping[str, RouterResult]) -> float | None:
    """1 - call ratio of the relay / teacher share of the cheapest query router that is as accurate."""
    shares = [router.teacher_token_share for name, router in routers.items() if name.startswith("random_query_router")]
    if "relay_after" not in results or not shares or min(shares) == 0.0:
        return None
    return 1.0 - results["relay_after"].call_ratio / min(shares)


def installed_versions() -> dict[str, str]:
    """Versions of what decides a run's figures."""
    versions = {"python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a checkout that was put on the path without being installed
            versions[package] = "not installed"
    return versions


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The summary for a terminal."""
    table = Table(
        title="held-out problems, greedy decoding but where T = 1", title_justify="left", caption_justify="left"
    )
    table.caption = FOOTNOTE if "random_query_router_matched" in summary else None
    table.add_column("who writes", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for key, title in TITLES.items():
        if key in summary:
            table.add_row(title, *_cells(summary[key]))
    return table


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The summary for TensorBoard: the table and the derived figures."""
    rows = [("who writes", *HEADINGS), ("---", *["---:"] * len(HEADINGS))]
    rows += [(title.replace("*", r"\*"), *_cells(summary[key])) for key, title in TITLES.items() if key in summary]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n\n" + "\n\n".join(summary_lines(summary))


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The derived figures, a line each."""
    lines = []
    if sampled := summary.get("relay_after_sampled"):
        lines.append(f"commands that are well-formed when sampled: {1 - sampled['malformed_call_frac']:.1%}")
    if (after := summary.get("relay_after")) and (requested := after["requested_tokens_per_call"]):
        delivered = after["mean_teacher_tokens"] / after["calls_per_completion"]
        lines.append(f"tokens of a call: {requested:.1f} requested, {delivered:.1f} delivered")
    if (gap := summary.get("gap_recovered")) is not None:
        lines.append(f"gap to the teacher recovered: {gap:.1%}")
    if (reduction := summary.get("teacher_token_reduction")) is not None:
        lines.append(f"teacher tokens saved against a random query router of the same accuracy: {reduction:.1%}")
    return lines


def _cells(entry: Mapping[str, Any]) -> list[str]:
    if "probability" in entry:
        reached = "" if entry["is_matched"] else " (not reached)"
        return [f"{entry['accuracy']:.1%}{reached}", "", f"{entry['teacher_token_share']:.2%}", "", ""]
    low, high = entry["accuracy_interval_95"]
    return [
        f"{entry['accuracy']:.1%}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{entry['call_ratio']:.2%}",
        f"{entry['calls_per_completion']:.2f}",
        f"{entry['mean_completion_tokens']:.0f}",
    ]
