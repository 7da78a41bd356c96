"""Percentiles, samples, and the order of events on a CUDA device, played on a scripted one."""

from __future__ import annotations

import contextlib
import types

import pytest
import torch

from benchmarks.kernels import clock
from benchmarks.kernels.clock import Timing, peak_extra_bytes, time_call


def test_percentiles_of_known_samples():
    timing = Timing.of([float(value) for value in range(11)], "events")
    assert (timing.p20_s, timing.p50_s, timing.p80_s, timing.num_samples) == (2.0, 5.0, 8.0, 11)


def test_time_is_that_of_one_call_when_several_are_timed_together(monkeypatch):
    monkeypatch.setattr(clock, "seconds", lambda run, _: run() or 0.6)
    calls = []
    timing = time_call(lambda: calls.append(None), 3, torch.device("cpu"))
    assert timing.p50_s == pytest.approx(0.2)
    assert timing.num_samples == clock.MIN_SAMPLES
    assert len(calls) == clock.NUM_WARMUPS + 1 + clock.MIN_SAMPLES
    assert peak_extra_bytes(lambda: None, torch.device("cpu")) is None


class ScriptedCuda:
    """Stands in for torch.cuda: events read a clock that launches move on by a second, and flushes by a thousand."""

    def __init__(self, monkeypatch, refuses=None):
        self.now_s, self.is_capturing, self.captured, self.refuses, self.mode = 0.0, False, None, refuses, "default"
        cuda = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at_s = cuda.now_s

            def synchronize(self):
                pass

            def elapsed_time(self, stop):
                return 1e3 * (stop.at_s - self.at_s)

        @contextlib.contextmanager
        def graph(_, stream):
            assert stream == "side stream"
            self.is_capturing = True
            try:
                yield
            finally:
                self.is_capturing = False
            if self.refuses == "capture":
                raise RuntimeError("operation not permitted when stream is capturing")

        fake = types.SimpleNamespace(
            Event=Event,
            graph=graph,
            CUDAGraph=lambda: types.SimpleNamespace(replay=lambda: self.launch(is_replay=True)),
            current_stream=lambda: "side stream",
            set_sync_debug_mode=self.set_mode,
        )
        monkeypatch.setattr(clock.torch, "cuda", fake)
        monkeypatch.setattr(clock.torch, "zeros", lambda *_, **__: types.SimpleNamespace(sum=self.flush))
        monkeypatch.setattr(clock, "cold_bytes", lambda _: 1 << 10)
        self.eager = self.replayed = 0

    def set_mode(self, mode):
        self.mode = mode

    def flush(self):
        self.now_s += 1000.0

    def launch(self, is_replay=False):
        if self.is_capturing:
            return
        if self.mode == "error" and self.refuses == "synchronisation":
            raise RuntimeError("called a synchronizing CUDA operation")
        self.now_s += 1.0
        self.replayed += is_replay
        self.eager += not is_replay


@pytest.mark.parametrize(
    ("refuses", "is_graphed", "method"),
    [(None, True, "graph"), (None, False, "events"), ("synchronisation", True, "events"), ("capture", True, "events")],
)
def test_calls_are_replayed_as_a_graph_when_they_can_be_captured(monkeypatch, refuses, is_graphed, method):
    device = torch.device("cpu")
    cuda = ScriptedCuda(monkeypatch, refuses)
    timing = clock._time_on_cuda(cuda.launch, 4, device, is_graphed)
    assert timing.method == method
    assert timing.p50_s == pytest.approx(
        0.25
    )  # A launch of four calls takes a second; the flush is outside the events.
    assert (cuda.replayed > 0) == (method == "graph")
    assert cuda.mode == "default"
