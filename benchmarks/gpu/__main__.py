"""Everything that wants a GPU, in one command of under nine minutes:

    python -m benchmarks.gpu

Each part is a process of its own with a share of the time; what it has measured is in benchmarks/results at once, and
a part that fails or runs out of time costs the others nothing. Models have the published architectures and random
weights, so nothing is downloaded. On a CPU they are minute ones: that proves the program, and no figure says anything
about a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from relay_kernels.__main__ import BLOCK_OPS

from benchmarks.gpu import batch_one, memory, rollout
from benchmarks.gpu.scale import Scale
from benchmarks.harness import device_name, write_result
from benchmarks.kernels.__main__ import OPS

BUDGET_S = 520.0
"""Of all parts together: nine minutes, less what starting and ending takes."""
LEAST_S = 5.0
"""A part that has less time left is not started."""

MEASURES: dict[str, Callable[[Scale], Iterator[dict[str, Any]]]] = {
    "batch_one": batch_one.measure,
    "rollout": rollout.measure,
    "memory": memory.measure,
}
"""The parts that live here, by name."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process."""

    command: tuple[str, ...]
    """What follows `python`."""
    limit_s: float
    """Seconds after which it is ended, results written so far kept."""


def parts(device: torch.device) -> dict[str, Part]:
    """All parts, in the order of what one wants to know first."""
    own = {name: ("-m", "benchmarks.gpu", "--device", device.type, "--part", name) for name in MEASURES}
    is_small = ("--num-prompts", "4", "--max-num-seqs", "4", "--length", "16", "--repeats", "1")
    relay_decode = ("-m", "benchmarks.bench_relay_decode", "--device", device.type)
    kernels = ("-m", "benchmarks.kernels", "--device", device.type)
    return {
        "kernels": Part((*kernels, *of_ops(*(op for op in OPS if op not in BLOCK_OPS))), 120),
        "batch_one": Part(own["batch_one"], 150),
        "rollout": Part(own["rollout"], 150),
        "memory": Part(own["memory"], 100),
        "grpo_step": Part(("-m", "benchmarks.bench_grpo_step", "--turns", "1", "--steps", "2"), 120),
        "block_kernels": Part((*kernels, *of_ops(*BLOCK_OPS)), 60),
        "relay_step_native": Part((*kernels, *of_ops("relay_step"), "--backend", "native"), 40),
        "relay_decode": Part((*relay_decode, *(is_small if device.type == "cpu" else ("--repeats", "1"))), 90),
    }


def of_ops(*ops: str) -> tuple[str, ...]:
    """The kernel benchmark's arguments for these alone."""
    return tuple(word for op in ops for word in ("--op", op))


def run_all(todo: Mapping[str, Part], budget_s: float) -> dict[str, str]:
    """What became of each part: done, failed, ended (for want of time) or skipped (the same, before it began)."""
    deadline_s = time.monotonic() + budget_s
    outcomes = {}
    for name, part in todo.items():
        left_s = deadline_s - time.monotonic()
        if left_s < LEAST_S:
            outcomes[name] = "skipped"
            continue
        print(f"\n== {name}: at most {min(part.limit_s, left_s):.0f} of {left_s:.0f} s", flush=True)
        outcomes[name] = run_part(part, left_s)
    return outcomes


def run_part(part: Part, left_s: float) -> str:
    """Runs a part until it is over or its time is."""
    try:
        status = subprocess.run([sys.executable, *part.command], timeout=min(part.limit_s, left_s), check=False)
    except subprocess.TimeoutExpired:
        return "ended"
    return "done" if status.returncode == 0 else f"failed ({status.returncode})"


def run_here(name: str, scale: Scale) -> None:
    """Measures one part in this process and writes each of its figures as soon as it is there."""
    for figures in MEASURES[name](scale):
        write_result("gpu", scale.device, {"part": name, "is_full_shape": scale.is_full, **figures})
        sys.stdout.flush()


def main() -> int:
    """1 when a part failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", choices=MEASURES, help="this part only, in this process")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for all parts")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    warnings.filterwarnings("ignore")
    if arguments.part is not None:
        run_here(arguments.part, Scale.of(device))
        return 0
    small = "" if device.type == "cuda" else ", a CPU: minute shapes. No figure here says anything about a GPU."
    print(f"{device_name(device)}{small}")
    outcomes = run_all(parts(device), arguments.budget_s)
    width = max(map(len, outcomes))
    print("\n" + "\n".join(f"{name:<{width}}  {outcome}" for name, outcome in outcomes.items()))
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
