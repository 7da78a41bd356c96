"""How many threads compute on a CPU, and how they wait for each other.

PyTorch takes a thread for each core. After its part of an operation a thread of GNU OpenMP spins for milliseconds until
the others are done. Where another program holds a core, one of them has been preempted, and decoding becomes 70 to 100
times slower. So small models decode with one thread, and everywhere else a waiting thread soon gives its core away.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

FEWEST_PARAMETERS = 10_000_000
"""Of a model whose decode steps take more than one thread: fewer are hundreds of operations of some microseconds."""
NUM_THREADS_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
ELEMENTS_OF_A_THREAD = 1 << 15
"""PyTorch gives a thread at least so many elements of a pointwise operation."""


@contextmanager
def decode_threads(num_parameters: int) -> Iterator[None]:
    """Computes with one thread what a small model decodes on a CPU, unless the user has chosen a number of threads."""
    before = torch.get_num_threads()
    if before == 1 or num_parameters >= FEWEST_PARAMETERS or _has_chosen(before):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def yield_cores() -> None:
    """Makes OpenMP threads of this process sleep after some microseconds of waiting, for as long as it lives.

    GNU OpenMP spins that briefly (1,000 turns in place of 300,000) while a process has more of its threads than there
    are cores. Its settings are read when it is loaded, which is too late when PyTorch is imported already. So a second
    team of threads is started, and sleeps. Does nothing where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set, or where there
    is one thread; other OpenMP libraries are not affected.
    """
    num_cores = count_cores()
    if any(name in os.environ for name in WAIT_SETTINGS) or torch.get_num_threads() == 1 or num_cores == 1:
        return
    is_started = threading.Event()
    threading.Thread(target=_keep_team, args=(num_cores, is_started), daemon=True, name="sleeping-team").start()
    is_started.wait()


def count_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _has_chosen(num_threads: int) -> bool:
    """True if the number of threads is not PyTorch's own: a thread for each logical or physical core."""
    is_default = num_threads in (count_cores(), count_cores() // 2)
    return not is_default or any(name in os.environ for name in NUM_THREADS_SETTINGS)


def _keep_team(num_threads: int, is_started: threading.Event) -> None:
    """Starts OpenMP threads of the calling thread, and keeps them by never returning."""
    try:
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        torch.ones(num_threads * ELEMENTS_OF_A_THREAD).exp_()
        torch.set_num_threads(before)  # The number set last is that of threads yet to come.
    finally:
        is_started.set()
    threading.Event().wait()
