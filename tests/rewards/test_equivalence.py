"""Worker processes: their limits, and comparisons whose worker was stopped, killed or never started."""

from __future__ import annotations

import os
import re
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from relay_lightning.rewards.comparison import Equivalence
from relay_lightning.rewards.equivalence import ComparisonBudget, Worker, WorkerLimits, WorkerPool

ROOTS = (r"\sqrt{8}", r"2\sqrt{2}")

ENDLESS = {
    "a sum": r"\sum_{k=1}^{10^9} \sin(k^2)",
    "a product": r"\prod_{n=1}^{10^9} n",
    "an expansion": r"\int (x+1)^{100000} dx",
    "a tower of powers in an integral": "\\int 9^{9^{9^{9}}} dx",  # one C function for ever: no exception can stop it
}


@pytest.fixture
def start():
    """Makes workers with limits of choice, and closes them."""
    made = []

    def start_worker(*args, **limits):
        made.append(Worker(*args, limits=WorkerLimits(**limits)))
        return made[-1]

    yield start_worker
    for worker in made:
        worker.close()


def verdict_of(worker, reference=ROOTS[0], given=ROOTS[1]):
    outcome = worker.compare(reference, given)
    return outcome.verdict, outcome.is_lasting


def assert_ended(worker, content):
    assert verdict_of(worker, "7", content) == (Equivalence.UNDECIDED, True)
    assert verdict_of(worker) == (Equivalence.EQUAL, True)


def test_an_endless_computation_is_ended_and_the_next_answer_judged(start):
    assert_ended(start(processor_s=0.5), ENDLESS["a product"])


@pytest.mark.slow
@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS)
def test_everything_endless_is_ended_in_worker_threads_too(start, content):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(assert_ended, start(processor_s=0.5), content).result()


@pytest.mark.parametrize(
    "content",
    ["9^{9^{9^{9}}}", "(10^9)!", r"\binom{10^9}{5\cdot 10^8}", "(1+i)^{10^7}", "(" * 450 + "1" + ")" * 450,
     r"\frac{1}{" * 90 + "2" + "}" * 90],
)  # fmt: skip
def test_what_is_too_large_or_too_deep_is_not_equal(start, content):
    """`(1+i)^{10^7}` once took 3.4 GB."""
    assert start(processor_s=1.0).compare("7", content).verdict is not Equivalence.EQUAL


def test_a_hungry_comparison_stays_below_the_memory_limit_and_the_next_answer_is_judged(start):
    """sympy multiplies the power out in hundreds of megabytes; it may also catch the error itself and say different."""
    limit = 120 << 20
    worker = start(processor_s=20.0, memory_bytes=limit)
    worker.prepare()
    process_id = worker.process_id
    assert worker.compare("7", r"\sum_{k=1}^{3} (1+i)^{10^6}").verdict is not Equivalence.EQUAL
    if worker.process_id == process_id:
        status = Path(f"/proc/{process_id}/status").read_text()
        assert int(re.search(r"VmPeak:\s*(\d+) kB", status)[1]) << 10 <= limit
    assert verdict_of(worker) == (Equivalence.EQUAL, True)


def test_a_worker_out_of_memory_says_so_and_is_not_asked_again(tmp_path, start):
    """The real loop under the real limit, around a comparison that allocates a gigabyte and counts its calls."""
    calls = tmp_path / "calls"
    hungry = tmp_path / "worker.py"
    hungry.write_text(
        f"import sys\nfrom relay_lightning.rewards import equivalence_worker as worker\n"
        f"def compare(*_):\n    open({str(calls)!r}, 'a').write('.')\n    return str(len(bytearray(1 << 30)))\n"
        f"worker.compare = compare\nworker.main(float(sys.argv[1]), int(sys.argv[2]))\n"
    )
    assert verdict_of(start(hungry, memory_bytes=300 << 20)) == (Equivalence.UNDECIDED, True)
    assert calls.read_text() == "."


def test_a_stopped_worker_is_ended_after_the_wall_limit(start):
    """A process that gets no processor time never reaches its processor limit; the run once waited for ever."""
    worker = start(wall_s=0.5)
    assert verdict_of(worker) == (Equivalence.EQUAL, True)
    os.kill(worker.process_id, signal.SIGSTOP)
    assert verdict_of(worker) == (Equivalence.UNDECIDED, False)
    assert verdict_of(worker) == (Equivalence.EQUAL, True)


def test_a_worker_killed_while_idle_is_started_again(start):
    worker = start()
    assert verdict_of(worker) == (Equivalence.EQUAL, True)
    kill(worker)
    assert verdict_of(worker, r"\sqrt{8}", "3") == (Equivalence.DIFFERENT, True)


def test_a_comparison_is_made_again_when_its_worker_is_killed_meanwhile(start):
    """The comparison is held up by SIGSTOP, so that it is certainly under way."""
    worker = start()
    worker.prepare()
    first = worker.process_id
    os.kill(first, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
    killer.start()
    assert verdict_of(worker) == (Equivalence.EQUAL, True)
    killer.join()
    assert worker.process_id != first


def test_a_comparison_whose_workers_are_all_killed_is_undecided_and_not_kept(tmp_path, start):
    """An out-of-memory killer takes the second worker too: the verdict is no property of the answers."""
    dying = tmp_path / "worker.py"
    dying.write_text("import os\nprint('ready', flush=True)\ninput()\nos.kill(os.getpid(), 9)\n")
    assert verdict_of(start(dying)) == (Equivalence.UNDECIDED, False)


def test_a_worker_killed_at_its_start_does_not_end_the_run(tmp_path, start):
    killed = tmp_path / "worker.py"
    killed.write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert verdict_of(start(killed)) == (Equivalence.UNDECIDED, False)


def test_a_worker_that_hangs_at_its_start_does_not_hold_up_the_run(tmp_path, start):
    hanging = tmp_path / "worker.py"
    hanging.write_text("import time\ntime.sleep(600)\n")
    assert verdict_of(start(hanging, start_s=0.3)) == (Equivalence.UNDECIDED, False)


def test_a_worker_that_cannot_start_says_so(tmp_path, start):
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="math-verify could not be started"):
        start(broken).compare("1", "2")


def test_a_verdict_that_may_change_is_not_cached():
    pool = WorkerPool(1, WorkerLimits(wall_s=0.5))
    worker = pool._workers[0]
    try:
        worker.prepare()
        os.kill(worker.process_id, signal.SIGSTOP)
        assert pool.compare(*ROOTS) is Equivalence.UNDECIDED
        assert pool.compare(*ROOTS) is Equivalence.EQUAL
        kill(worker)
        assert pool.compare(*ROOTS) is Equivalence.EQUAL  # from the cache
        assert worker.process_id is None or not is_running(worker)
    finally:
        pool.close()


def test_a_budget_counts_slow_comparisons_only():
    budget = ComparisonBudget(1.0)
    for _ in range(1000):
        budget.spend(0.2)
    assert budget.admits()
    budget.spend(2.0)
    assert not budget.admits()
    assert budget.num_refused == 1


def test_what_a_budget_refused_is_compared_the_next_time():
    pool = WorkerPool(1)
    used_up = ComparisonBudget(0.0)
    try:
        assert pool.compare(*ROOTS, budget=used_up) is Equivalence.UNDECIDED
        assert pool.compare(*ROOTS) is Equivalence.EQUAL
        assert pool.compare(*ROOTS, budget=used_up) is Equivalence.EQUAL  # the cache costs nothing
    finally:
        pool.close()


def kill(worker):
    os.kill(worker.process_id, signal.SIGKILL)
    worker._process.wait()


def is_running(worker):
    return worker._process.poll() is None
