"""Draws pictures of what was measured.

pip install -e ".[plot]"
python -m benchmarks.plot training runs/grpo training.png
python -m benchmarks.plot kernels benchmarks/results/<device>.jsonl kernels.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from benchmarks import plot_kernels, plot_training

PICTURES = {"training": plot_training.plot, "kernels": plot_kernels.plot}


def main() -> None:
    """Draws one picture; its suffix says the format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", choices=PICTURES)
    parser.add_argument("source", type=Path, help="a run folder, or a results file")
    parser.add_argument("output", type=Path, help="picture to write; its suffix says the format")
    arguments = parser.parse_args()
    try:
        figure = PICTURES[arguments.picture](arguments.source)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output)


if __name__ == "__main__":
    main()
