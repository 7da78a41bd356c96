"""What threads cost beside a busy program: our rule and PyTorch's, both beside one thread, decoding and in an update.

`python -m benchmarks.bench_threads [--layers 3] [--hidden 128] [--rows 64] [--rounds 7]`. Each way is a process of its
own; they take turns, first on the machine as it is, then beside a busy loop. A figure is the median time over that of
one thread in the same phase: the aim is at most 1.3 beside the busy loop.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.bare_rows import BareRows
from benchmarks.harness import print_table, write_result
from relay_lightning.engine.local import LocalModel
from relay_lightning.threads import NUM_THREADS_SETTINGS, WAIT_SETTINGS, yield_cores

NUM_STEPS = 30
UPDATE_SHAPE = (16, 100)
VOCAB_SIZE = 402
BUSY = (sys.executable, "-c", "while True: pass")
WAYS: dict[str, dict[str, str]] = {
    "one thread": {"OMP_NUM_THREADS": "1"},
    "relay_lightning": {},
    "PyTorch": {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(os.cpu_count())},  # as GNU OpenMP has it by itself
}


def make_works(num_layers: int, hidden_size: int, num_rows: int) -> dict[str, Callable[[], None]]:
    """Decode steps of a random Qwen3 model, and an update of it."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE, hidden_size=hidden_size, intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers, num_attention_heads=hidden_size // 32, num_key_value_heads=hidden_size // 64,
        head_dim=32, max_position_embeddings=256,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    local, optimizer = LocalModel(model), torch.optim.AdamW(model.parameters())
    token_ids = torch.randint(VOCAB_SIZE, UPDATE_SHAPE)
    tokens = torch.zeros(num_rows, dtype=torch.int64)

    def decode() -> None:
        with local.session() as forward:
            BareRows(local, num_rows, NUM_STEPS).decode(forward, tokens, NUM_STEPS)

    def update() -> None:
        model(input_ids=token_ids, labels=token_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    yield_cores()
    return {"decode": decode, "update": update}


def serve(works: dict[str, Callable[[], None]]) -> None:
    """Does each work that a line of the input names, and prints its seconds."""
    for line in sys.stdin:
        start_s = time.perf_counter()
        works[line.strip()]()
        print(time.perf_counter() - start_s, flush=True)


def ask(process: subprocess.Popen[str], work: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{work}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(processes: dict[str, subprocess.Popen[str]], work: str, num_rounds: int) -> dict[str, float]:
    """Median seconds of each way; they take turns."""
    rounds = [{way: ask(process, work) for way, process in processes.items()} for _ in range(num_rounds)]
    return {way: statistics.median(times[way] for times in rounds) for way in processes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--layers", 3), ("--hidden", 128), ("--rows", 64), ("--rounds", 7)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(make_works(arguments.layers, arguments.hidden, arguments.rows))
        return
    plain = {name: value for name, value in os.environ.items() if name not in NUM_THREADS_SETTINGS + WAIT_SETTINGS}
    command = [sys.executable, "-m", "benchmarks.bench_threads", "--serve", *sys.argv[1:]]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = {way: subprocess.Popen(command, env=plain | settings, **pipes) for way, settings in WAYS.items()}
    figures: dict[str, float] = {}
    rows: list[list[object]] = []
    for machine in ("as it is", "beside a busy loop"):
        busy = subprocess.Popen(BUSY) if machine != "as it is" else None
        for work in ("decode", "update"):
            for process in processes.values():
                ask(process, work)
            times = measure(processes, work, arguments.rounds)
            base = times["one thread"]
            rows.append([machine, work, 1e3 * base, *(times[way] / base for way in list(WAYS)[1:])])
            figures |= {f"{work}, {machine}, {way}_s": seconds for way, seconds in times.items()}
        if busy is not None:
            busy.kill()
    for process in processes.values():
        process.communicate()
    print_table(
        "Time over that of one thread", ["machine", "work", "one thread, ms", "relay_lightning", "PyTorch"], rows
    )
    sizes = {"layers": arguments.layers, "hidden": arguments.hidden, "rows": arguments.rows}
    write_result("threads", torch.device("cpu"), sizes | figures)


if __name__ == "__main__":
    main()
