"""What PyTorch's CPU allocator gives out while code runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def measured_peak(work: Callable[[], object], path: Path) -> int:
    """Bytes that the CPU allocator gave out at most while `work` ran, above what it had given before.

    path: of a file for the trace.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    profiler.export_chrome_trace(str(path))
    current, peak, live = 0, 0, {}
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
    for event in sorted(events, key=lambda event: event["ts"]):
        address, num_bytes = event["args"]["Addr"], event["args"]["Bytes"]
        if num_bytes > 0:
            live[address] = num_bytes
            current += num_bytes
            peak = max(peak, current)
        else:  # also of what was given out unseen, before or by another thread
            current -= live.pop(address, 0)
    return peak
