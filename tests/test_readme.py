"""The README keeps up with the code."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_file_tree_of_the_readme_is_what_the_files_say_of_themselves() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    replace_tree = runpy.run_path(str(ROOT / "docs/file_tree.py"))["replace_tree"]
    assert replace_tree(readme) == readme, "run `python docs/file_tree.py`"
