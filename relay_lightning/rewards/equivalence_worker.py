"""The process behind `equivalence.py`: reads a JSON list [reference, given] per line, writes one word per line.

It is run as a file, not imported, so that it loads math-verify and nothing of this package.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys


def compare(reference: str, given: str) -> str:
    """ "equal", "different", or "undecided" when a side cannot be parsed or math-verify fails on the pair."""
    from math_verify import parse, verify

    try:
        parsed = [parse(rf"\boxed{{{side}}}", parsing_timeout=None, raise_on_error=True) for side in (reference, given)]
        # A list without a symbolic entry holds only the text itself: it was not understood.
        if any(all(isinstance(entry, str) for entry in side) for side in parsed):
            return "undecided"
        return "equal" if verify(*parsed, timeout_seconds=None, raise_on_error=True) else "different"
    except Exception:  # whatever sympy raises on a student's answer; the caller counts it
        return "undecided"


def main(max_processor_s: float) -> None:
    """Serves until the input ends, or until one comparison has used up its processor time.

    The system's timer then ends the process: an exception could not stop a C function.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is the end of the input
    logging.disable(logging.CRITICAL)  # math-verify warns about the missing timeout at each call
    import math_verify  # noqa: F401  # before "ready", so that a missing package shows at the start

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        reference, given = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, max_processor_s)
        word = compare(reference, given)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        print(word, file=answers, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
