"""What came of a case: times, memory, and how they stand to the ceilings and the bars."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.kernels.case import COPY, Case
from benchmarks.kernels.clock import Timing
from benchmarks.kernels.gate import Check

OURS = "relay_kernels"
"""Our contestant's name."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One contestant."""

    timing: Timing
    extra_bytes: int | None
    """Peak memory beyond the inputs, results included; None on a CPU."""


@dataclass(slots=True)
class Outcome:
    """One case on one device. Without times when a check is red."""

    case: Case
    backend: str
    dtype: str
    is_full: bool
    """Whether the shape is the one that the bars are about."""
    copy_bytes_per_s: float
    checks: list[Check]
    is_cold: bool = False
    """Whether the inputs that take turns are too large for the cache to keep."""
    num_launches: int | None = None
    contestants: dict[str, Measured] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> str:
        """The name under which our own call stands among the contestants."""
        return OURS

    @property
    def ours_s(self) -> float | None:
        """Median seconds of our own call."""
        return self.seconds(OURS)

    @property
    def is_green(self) -> bool:
        return all(check.is_green for check in self.checks)

    def seconds(self, name: str) -> float | None:
        """Median seconds of a contestant; None when it has none."""
        measured = self.contestants.get(name)
        return None if measured is None else measured.timing.p50_s

    def extra_bytes(self, name: str) -> int | None:
        measured = self.contestants.get(name)
        return None if measured is None else measured.extra_bytes

    @property
    def least_seconds(self) -> float | None:
        """What the ceiling allows; None where there is none."""
        if self.case.ceiling == COPY:
            return self.case.num_bytes / self.copy_bytes_per_s
        return None if self.case.ceiling is None else self.seconds(self.case.ceiling)

    def share(self, name: str) -> float | None:
        """How much of the ceiling's rate a contestant reaches; 1.0 is all of it."""
        least_s, taken_s = self.least_seconds, self.seconds(name)
        return None if least_s is None or taken_s is None else least_s / taken_s

    def figures(self) -> dict[str, Any]:
        """Everything as plain types, for a JSON line."""
        ceiling_s = None if self.case.ceiling in (None, COPY) else self.seconds(self.case.ceiling)
        return {
            "op": self.case.op,
            "setting": self.case.setting,
            "shape": dict(self.case.shape),
            "dtype": self.dtype,
            "backend": self.backend,
            "is_full_shape": self.is_full,
            "gate": "green" if self.is_green else "red",
            "checks": [_plain(check) for check in self.checks],
            "num_bytes": self.case.num_bytes,
            "copy_bytes_per_s": self.copy_bytes_per_s,
            "ceiling": self.case.ceiling,
            "ceiling_flop_per_s": self.case.num_flops / ceiling_s if ceiling_s else None,
            "is_cold": self.is_cold,
            "num_launches": self.num_launches,
            "contestants": {
                name: {**asdict(found.timing), "extra_bytes": found.extra_bytes, "share_of_ceiling": self.share(name)}
                for name, found in self.contestants.items()
            },
            "absent": list(self.case.absent),
            "failed": self.failed,
            "bars": [
                {"name": bar.name, "limit": bar.limit, "reach": bar.reach, **asdict(bar.verdict(self))}
                for bar in self.case.bars
            ],
        }


def _plain(check: Check) -> dict[str, Any]:
    """A check for JSON, which has neither infinity nor NaN: None stands for both."""
    error = check.error if math.isfinite(check.error) else None
    return {"name": check.name, "error": error, "allowed": check.allowed, "is_green": check.is_green}
