"""How fast are the ops, beside what the device can do and what others do?

    python -m benchmarks.kernels --device cuda

For each op: a correctness gate; then in the same run, on inputs that are not in the cache, our call, the reference,
torch.compile, and Liger-Kernel, FlashInfer and FlashAttention where they are installed (extras bench, flashinfer and
flash-attn); the ceilings measured on the device; and the bars. Each result is written as soon as it is there. The
process ends with 1 when a gate is red.

On a CPU the shapes are small and the figures say nothing about a GPU: what each op takes there runs, native code or the
reference, or, under TRITON_INTERPRET=1, Triton's interpreter, or what --backend names.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial

import torch
from relay_kernels.backends import BACKENDS, backend_of, is_interpreting

from benchmarks.harness import device_name, write_result
from benchmarks.kernels import decode_attention, linear_log_probs, norm_linear, pointwise, relay_advantages, relay_step
from benchmarks.kernels.case import Case
from benchmarks.kernels.report import print_outcome
from benchmarks.kernels.run import copy_bandwidth, run_case
from benchmarks.kernels.target import Target

OPS: dict[str, Callable[[Target], list[Case]]] = {
    "relay_step": relay_step.cases,
    "relay_advantages": relay_advantages.cases,
    "linear_log_probs": linear_log_probs.cases,
    "decode_attention": decode_attention.cases,
    **{op: partial(pointwise.cases, op=op) for op in pointwise.OPS},
    "norm_linear": norm_linear.cases,
}


def main() -> int:
    """Measures what was asked for; 1 when a gate was red."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--op", choices=OPS, action="append", help="this op only; may be given several times")
    parser.add_argument(
        "--backend",
        choices=[name for name in BACKENDS if name != "auto"],
        help="default: what each op takes by itself, and triton under TRITON_INTERPRET=1; ops without it are skipped",
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    warnings.filterwarnings("ignore")
    print(introduction(device))
    copy_bytes_per_s = copy_bandwidth(Target.of(device, "reference"))
    print(f"copy: {copy_bytes_per_s / 1e9:,.1f} GB/s, bytes read plus written")
    backend = arguments.backend or ("triton" if is_interpreting() else "auto")
    red = [title for op in arguments.op or OPS for title in measure_op(op, backend, device, copy_bytes_per_s)]
    for title in red:
        print(f"red: {title}", file=sys.stderr)
    return int(bool(red))


def measure_op(op: str, backend: str, device: torch.device, copy_bytes_per_s: float) -> list[str]:
    """Measures all cases of an op, none where it lacks the backend. Returns the titles of those that are red."""
    try:
        target = Target.of(device, backend_of(op, backend, device))
    except RuntimeError as error:
        print(f"\n{op} is skipped: {error}")
        return []
    return [case.title for case in OPS[op](target) if not measure(case, target, copy_bytes_per_s)]


def measure(case: Case, target: Target, copy_bytes_per_s: float) -> bool:
    """Measures, prints and writes one case. False if its gate is red, or if it raised: the next ones still run."""
    try:
        outcome = run_case(case, target, copy_bytes_per_s)
    except Exception:
        traceback.print_exc()
        return False
    print_outcome(outcome)
    write_result("kernels", target.device, outcome.figures())
    sys.stdout.flush()
    return outcome.is_green


def introduction(device: torch.device) -> str:
    """What runs here, in one line."""
    name = device_name(device)
    if device.type != "cpu":
        return f"{name}: the shapes of the bars"
    how = ", in Triton's interpreter" if is_interpreting() else ""
    return f"{name}, a CPU: small shapes{how}. No figure here says anything about a GPU; all bars stay open."


if __name__ == "__main__":
    sys.exit(main())
