"""The bars: what a figure must be at least, or at most, and whether it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.kernels.outcome import Outcome

Figure = Callable[["Outcome"], float | None]
"""A figure of an outcome; None where it is not to be had."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`word` is met, not met or open."""

    value: float | None
    word: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One demand on one figure. `reach` is what one would like to see."""

    name: str
    figure: Figure
    limit: float
    reach: float | None = None
    is_upper: bool = True
    """Whether the limit is the largest value allowed, not the smallest."""

    def verdict(self, outcome: Outcome) -> Verdict:
        """Open wherever the figure is missing, or is not of the shape that the bar is about."""
        value = self.figure(outcome)
        if value is None or not outcome.is_full:
            return Verdict(value, "open")
        is_met = value <= self.limit if self.is_upper else value >= self.limit
        return Verdict(value, "met" if is_met else "not met")


def microseconds(outcome: Outcome) -> float | None:
    """Median time of our call."""
    return None if outcome.ours_s is None else 1e6 * outcome.ours_s


def launches(outcome: Outcome) -> float | None:
    """Kernels that our call starts."""
    return None if outcome.num_launches is None else float(outcome.num_launches)


def ceiling_percent(outcome: Outcome) -> float | None:
    """Our rate, in per cent of the ceiling's."""
    share = outcome.share(outcome.ours)
    return None if share is None else 100 * share


def extra_mib(outcome: Outcome) -> float | None:
    """Our peak memory beyond the inputs."""
    extra_bytes = outcome.extra_bytes(outcome.ours)
    return None if extra_bytes is None else extra_bytes / 2**20


def times(name: str) -> Figure:
    """Our time as a multiple of another's."""
    return lambda outcome: _ratio(outcome.ours_s, outcome.seconds(name))


def speedup(name: str) -> Figure:
    """Another's time as a multiple of ours."""
    return lambda outcome: _ratio(outcome.seconds(name), outcome.ours_s)


def memory_times(name: str) -> Figure:
    """Our peak memory beyond the inputs as a multiple of another's."""
    return lambda outcome: _ratio(outcome.extra_bytes(outcome.ours), outcome.extra_bytes(name))


def speedup_over_fastest_rival(outcome: Outcome) -> float | None:
    """The fastest rival's time as a multiple of ours."""
    rivals_s = [outcome.seconds(name) for name in outcome.case.rivals]
    return _ratio(min((time_s for time_s in rivals_s if time_s is not None), default=None), outcome.ours_s)


def _ratio(value: float | None, unit: float | None) -> float | None:
    return value / unit if value is not None and unit else None
