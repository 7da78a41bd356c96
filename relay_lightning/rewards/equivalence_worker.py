"""The process behind `equivalence.py`: reads a JSON list [reference, given, tolerance] per line, writes a word and
the processor time it took for each.

Formulas are compared by their values (`numerics.py`), and by math-verify where they hold more than values: integrals,
sums, sets of solutions. The process runs under limits of memory and processor time.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import resource
import signal
import sys
import time
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # it is run as a file

from relay_lightning.rewards.formula import FormulaError, TooLargeError
from relay_lightning.rewards.notation import without_marks
from relay_lightning.rewards.numerics import formulas_equal, have_other_solutions

OUT_OF_MEMORY = 3
"""Exit status of a process that reached its memory limit."""


def compare(reference: str, given: str, tolerance: Fraction) -> str:
    """Returns "equal", "different", or "undecided" when a side cannot be read or its value not be computed."""
    try:
        return _compare_values(reference, given, tolerance) or _ask_math_verify(reference, given)
    except MemoryError:
        raise
    except Exception:  # whatever sympy raises on a student's answer; the caller counts it
        return "undecided"


def _compare_values(reference: str, given: str, tolerance: Fraction) -> str:
    """The word for formulas that have values, else "".

    Equations that are no multiples of each other may have the same solutions, which math-verify then compares.
    """
    try:
        if formulas_equal(reference, given, tolerance):
            return "equal"
        has_equations = "=" in reference and "=" in given
        return "" if has_equations and not have_other_solutions(reference, given) else "different"
    except TooLargeError:
        return "undecided"
    except FormulaError:
        return ""


def _ask_math_verify(reference: str, given: str) -> str:
    processor_s, _ = signal.setitimer(signal.ITIMER_PROF, 0.0)
    from math_verify import parse, verify  # on first use: it takes a second, which is not the comparison's

    signal.setitimer(signal.ITIMER_PROF, processor_s)
    sides = [without_marks(side).replace("°", r"^\circ") for side in (reference, given)]
    parsed = [parse(rf"\boxed{{{side}}}", parsing_timeout=None, raise_on_error=True) for side in sides]
    # A list without a symbolic entry holds only the text itself: it was not understood.
    if any(all(isinstance(entry, str) for entry in side) for side in parsed):
        return "undecided"
    if not verify(*parsed, timeout_seconds=None, raise_on_error=True):
        return "different"
    return "equal" if _agree(parsed[0][0], parsed[1][0]) else "different"


def _agree(reference: object, given: object) -> bool:
    """False for two constants that math-verify took for equal because they are small or nearly equal."""
    from sympy import Expr

    if not isinstance(reference, Expr) or not isinstance(given, Expr) or (reference - given).free_symbols:
        return True
    difference = (reference - given).doit()
    if difference.is_zero:
        return True
    size = max(abs(side.doit().evalf(30)) for side in (reference, given))
    return bool(abs(difference.evalf(30, maxn=1000)) <= size * 1e-25)


def main(max_processor_s: float, max_memory_bytes: int) -> None:
    """Serves until the input ends, or until one comparison has used up its processor time or the memory.

    The system's timer then ends the process: an exception could not stop a C function.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end is the end of the input
    resource.setrlimit(resource.RLIMIT_AS, (max_memory_bytes, max_memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)  # math-verify warns about the missing timeout at each call
    sys.set_int_max_str_digits(0)
    if importlib.util.find_spec("math_verify") is None:
        raise SystemExit("The package math-verify is not installed.")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        reference, given, tolerance = json.loads(line)
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, max_processor_s)
        try:
            word = compare(reference, given, Fraction(tolerance))
        except MemoryError:
            os._exit(OUT_OF_MEMORY)  # what is left of the memory may not do for a clean end
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        print(word, time.process_time() - started, file=answers, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
