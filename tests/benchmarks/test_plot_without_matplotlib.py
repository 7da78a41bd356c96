"""The pictures when the extra `plot` is not installed."""

from __future__ import annotations

import subprocess
import sys


def test_missing_extra_is_one_sentence():
    code = (
        "import sys, runpy; sys.modules['matplotlib'] = None; runpy.run_module('benchmarks.plot', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == ['error: pictures need matplotlib: pip install -e ".[plot]"']
