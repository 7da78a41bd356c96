"""What every benchmark shares: timing, a table, and one JSON line with the circumstances of the measurement."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch", "transformers", "triton", "lightning", "trl", "liger-kernel", "flashinfer-python", "flash-attn",
)  # fmt: skip


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call of `work`, the device's queue included."""
    _synchronize(device)
    start_s = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start_s


def best_of(rivals: Mapping[str, Callable[[], Any]], device: torch.device, repeats: int = 3) -> dict[str, float]:
    """The shortest seconds of each rival over `repeats` rounds in which they take turns, after one round of warm-up.

    Taking turns lets a busy machine disturb all of them alike; the shortest time is the least disturbed one.
    """
    for work in rivals.values():
        work()
    rounds = [{name: seconds(work, device) for name, work in rivals.items()} for _ in range(repeats)]
    return {name: min(times[name] for times in rounds) for name in rivals}


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table whose numbers stand under their headings."""
    cells = [[_cell(value) for value in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def write_result(benchmark: str, device: torch.device, figures: Mapping[str, Any]) -> None:
    """Prints the figures as one JSON line and appends it to results/<device>.jsonl."""
    name = device_name(device)
    line = json.dumps({"benchmark": benchmark, **circumstances(device), **figures})
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-').lower()}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)


def circumstances(device: torch.device) -> dict[str, Any]:
    """Device, commit, versions and date of a measurement."""
    versions = {package: _version(package) for package in PACKAGES}
    return {
        "device": device_name(device),
        "num_threads": torch.get_num_threads(),
        "num_cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: version for package, version in versions.items() if version},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", *_module(), *sys.argv[1:]]),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        models = []
    return models[0] if models else platform.processor() or platform.machine()


def _commit() -> str:
    """The short commit, with a plus sign when tracked files other than results were changed."""
    try:
        commit = _git("rev-parse", "--short", "HEAD").strip()
        changes = _git("diff", "--name-only", "HEAD", "--", ":(top)", f":(top,exclude){'/'.join(RESULTS.parts[-2:])}")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + "+" * bool(changes)


def _git(*arguments: str) -> str:
    """What git prints about the folder of this file."""
    return subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout


def _module() -> list[str]:
    """How the running program was named to Python: `-m` and a module, or a file; no folder of this machine."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return [Path(sys.argv[0]).name] if spec is None else ["-m", spec.name.removesuffix(".__main__")]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cell(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )
