"""Tables of an outcome."""

from __future__ import annotations

from benchmarks.harness import print_table
from benchmarks.kernels.case import COPY
from benchmarks.kernels.outcome import Outcome

MISSING = "-"


def print_outcome(outcome: Outcome) -> None:
    """The checks, the contestants, the bars; of a red outcome the checks alone."""
    title = f"{outcome.case.title}: backend {outcome.backend}, {outcome.dtype}"
    print_table(title, ("check", "error", "allowed", ""), check_rows(outcome))
    if not outcome.is_green:
        print("  The gate is red: no speed is reported.")
        return
    print_table(subtitle(outcome), ("", "p20 us", "p50 us", "p80 us", "by", "% of ceiling", "extra MiB"), rows(outcome))
    for name, why in outcome.failed.items():
        print(f"  {name} failed: {why}")
    if outcome.case.absent:
        print(f"  absent: {', '.join(outcome.case.absent)}")
    print_table("  bars", ("", "limit", "reach", "here", ""), bar_rows(outcome))


def subtitle(outcome: Outcome) -> str:
    """What the percentages are of, and whether the inputs came from memory or from the cache."""
    case = outcome.case
    where = "cold cache" if outcome.is_cold else "warm cache"
    if case.ceiling is None:
        return f"  {case.num_bytes:,} bytes must move; no ceiling but the launch; {where}"
    least_s = outcome.least_seconds or 0.0
    if case.ceiling == COPY:
        rate = f"{case.num_bytes:,} bytes must move, {outcome.copy_bytes_per_s / 1e9:,.1f} GB/s copy"
    else:
        rate = f"{case.ceiling}, {case.num_flops / least_s / 1e12:,.3g} TFLOP/s"
    return f"  ceiling: {rate}, {1e6 * least_s:,.1f} us; {where}"


def check_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    return [
        (check.name, f"{check.error:.3g}", f"{check.allowed:.3g}", "green" if check.is_green else "RED")
        for check in outcome.checks
    ]


def rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """One row a contestant."""
    found = []
    for name, measured in outcome.contestants.items():
        timing = measured.timing
        microseconds = (f"{1e6 * time_s:,.2f}" for time_s in (timing.p20_s, timing.p50_s, timing.p80_s))
        found.append((name, *microseconds, timing.method, _percent(outcome.share(name)), _mib(measured.extra_bytes)))
    return found


def bar_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    found = []
    for bar in outcome.case.bars:
        verdict = bar.verdict(outcome)
        sign = "<=" if bar.is_upper else ">="
        reach = MISSING if bar.reach is None else f"{sign} {bar.reach:,g}"
        value = MISSING if verdict.value is None else f"{verdict.value:,.3g}"
        found.append((bar.name, f"{sign} {bar.limit:,g}", reach, value, verdict.word))
    return found


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def _mib(num_bytes: int | None) -> str:
    return MISSING if num_bytes is None else f"{num_bytes / 2**20:,.1f}"
