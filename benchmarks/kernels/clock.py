"""Seconds, bytes and launches of a call on a device."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness import seconds

NUM_WARMUPS = 3
BUDGET_S = 1.0
"""For the samples of one contestant."""
MIN_SAMPLES, MAX_SAMPLES = 5, 100
FLUSH_FACTOR = 4
"""A cache counts as cold once this many times its size has been read since. Read, not written: what was written would
still have to leave the cache, at the expense of the call that is timed."""
CPU_CACHE_BYTES = 32 << 20

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """20th, 50th and 80th percentile of one call."""

    p20_s: float
    p50_s: float
    p80_s: float
    method: str
    """graph, events or perf_counter."""
    num_samples: int

    @classmethod
    def of(cls, samples_s: list[float], method: str) -> Timing:
        """The percentiles of at least two samples."""
        tenths = statistics.quantiles(samples_s, n=10, method="inclusive")
        return cls(tenths[1], tenths[4], tenths[7], method, len(samples_s))


def cold_bytes(device: torch.device) -> int:
    """Bytes that have to be read before nothing of an earlier call is left in the cache."""
    if device.type == "cuda":
        return FLUSH_FACTOR * torch.cuda.get_device_properties(device).L2_cache_size
    return FLUSH_FACTOR * CPU_CACHE_BYTES


def time_call(run: Call, num_calls: int, device: torch.device, *, is_graphed: bool = True) -> Timing:
    """The time of one of the `num_calls` equal calls that `run` makes.

    On a CUDA device they are replayed as one graph, where `is_graphed` and the calls can be captured, and timed by
    events. A graph of several calls hides what launching a graph costs.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # The inputs were made on another stream.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            return _time_on_cuda(run, num_calls, device, is_graphed)
    _warm_up(run)
    return Timing.of(_samples(lambda: seconds(run, device) / num_calls), "perf_counter")


def peak_extra_bytes(call: Call, device: torch.device) -> int | None:
    """Most memory that a call holds beyond what was held before, its results included; None where nobody counts."""
    if device.type != "cuda":
        return None
    call()  # Workspaces of libraries stay; they are no memory of the call.
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def count_launches(call: Call, device: torch.device) -> int | None:
    """Kernels, copies and fills that a call starts on a CUDA device; None where there are none to see."""
    if device.type != "cuda":
        return None
    call()
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in profiler.events()) or None


def _warm_up(run: Call) -> None:
    for _ in range(NUM_WARMUPS):
        run()


def _samples(sample: Callable[[], float]) -> list[float]:
    """As many samples as the budget has room for, after one that does not count."""
    estimate_s = max(sample(), 1e-9)
    return [sample() for _ in range(max(MIN_SAMPLES, min(MAX_SAMPLES, int(BUDGET_S / estimate_s))))]


def _time_on_cuda(run: Call, num_calls: int, device: torch.device, is_graphed: bool) -> Timing:
    """See `time_call`; on the current stream."""
    _warm_up(run)
    graph = _capture(run) if is_graphed else None
    launch = run if graph is None else graph.replay
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush = torch.zeros(cold_bytes(device) // 4, device=device)

    def sample() -> float:
        # The flush also keeps the device busy until the launch is in its queue.
        flush.sum()
        start.record()
        launch()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3 / num_calls

    return Timing.of(_samples(sample), "events" if graph is None else "graph")


def _capture(run: Call) -> torch.cuda.CUDAGraph | None:
    """The graph of `run`, or None when it waits for the device somewhere or cannot be captured for another reason."""
    graph = torch.cuda.CUDAGraph()
    try:
        torch.cuda.set_sync_debug_mode("error")
        run()
        torch.cuda.set_sync_debug_mode("default")
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            run()
    except RuntimeError:
        return None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return graph
