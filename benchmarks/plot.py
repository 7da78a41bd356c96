"""Draws pictures of what was measured.

pip install -e ".[plot]"
python -m benchmarks.plot training runs/grpo training.png
python -m benchmarks.plot kernels benchmarks/results/<device>.jsonl kernels.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import matplotlib as mpl
except ModuleNotFoundError:
    print('error: pictures need matplotlib: pip install -e ".[plot]"', file=sys.stderr)
    sys.exit(2)

mpl.use("svg")
from benchmarks import plot_kernels, plot_training
from relay_lightning.files import new_file
from relay_lightning.terminal import one_line

PICTURES = {"training": plot_training.plot, "kernels": plot_kernels.plot}


def main() -> None:
    """Draws one picture; its suffix says the format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("source", type=Path, help="a run folder, or a results file")
    parser.add_argument("output", type=Path, help="picture to write, a new file; its suffix says the format")
    arguments = parser.parse_args()
    try:
        with new_file(arguments.output) as output:
            PICTURES[arguments.picture](arguments.source).savefig(output)
    except (OSError, ValueError) as error:
        parser.error(one_line(str(error)))


if __name__ == "__main__":
    main()
