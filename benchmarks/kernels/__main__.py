"""How fast are the ops, beside what the device can do and what others do?

    python -m benchmarks.kernels --device cuda

For each op: a correctness gate; then in the same run, on inputs that are not in the cache, our call, the reference,
torch.compile, and Liger-Kernel, FlashInfer and FlashAttention where they are installed (extras bench, flashinfer and
flash-attn); the ceilings measured on the device; and the bars. Each result is written as soon as it is there. The
process ends with 1 when a gate is red.

On a CPU the shapes are small and the figures say nothing about a GPU: the references run, or, under
TRITON_INTERPRET=1, Triton's interpreter, or what --backend names.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import partial

import torch
from relay_kernels.backends import BACKENDS, is_interpreting

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
        help="default: triton on a GPU and under TRITON_INTERPRET=1, else reference",
    )
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device here")
    warnings.filterwarnings("ignore")
    target = Target.of(device, arguments.backend)
    print(introduction(target))
    copy_bytes_per_s = copy_bandwidth(target)
    print(f"copy: {copy_bytes_per_s / 1e9:,.1f} GB/s, bytes read plus written")
    cases = [case for op in arguments.op or OPS for case in OPS[op](target)]
    red = [case.title for case in cases if not measure(case, target, copy_bytes_per_s)]
    for title in red:
        print(f"red: {title}", file=sys.stderr)
    return int(bool(red))


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


def introduction(target: Target) -> str:
    """What runs here, in one line."""
    name = device_name(target.device)
    if target.is_full:
        return f"{name}: {target.backend} at the shapes of the bars"
    how = " in its interpreter" if target.backend == "triton" and is_interpreting() else ""
    what = f"{target.backend}{how} at small shapes"
    return f"{name}, a CPU: {what}. No figure here says anything about a GPU; all bars stay open."


if __name__ == "__main__":
    sys.exit(main())
