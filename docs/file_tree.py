"""Writes the file tree of the README anew, a line a file, from what each file says of itself.

python docs/file_tree.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("relay_lightning", "kernels/relay_kernels", "kernels/csrc", "benchmarks")
BEGIN, END = "<!-- file tree -->\n", "<!-- end of the file tree -->\n"


def describe(path: Path) -> str:
    """The first sentence of a file's docstring, or of the comment that a C++ file begins with."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    else:
        text = " ".join(line[2:].strip() for line in re.findall(r"\A(?://.*\n)*", text)[0].splitlines())
    text = " ".join(text.split())
    sentence = re.match(r".*?[.?](?=\s|$)", text)
    return sentence.group().rstrip(".") if sentence else text.rstrip(":")


def lines_of(folder: Path) -> Iterator[str]:
    """A headline for each folder and a line for each file that says something of itself."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".py", ".cc", ".cu", ".h"))
    described = [(path.name, describe(path)) for path in files]
    described = [(name, text) for name, text in described if text]
    if described:
        yield f"{folder.relative_to(ROOT)}/"
        width = max(len(name) for name, _ in described) + 2
        yield from (f"  {name:{width}}{text}" for name, text in described)
    for child in sorted(path for path in folder.iterdir() if path.is_dir() and path.name != "__pycache__"):
        yield from lines_of(child)


def file_tree() -> str:
    """The whole block, in Markdown."""
    lines = [line for folder in FOLDERS for line in lines_of(ROOT / folder)]
    return "```\n" + "\n".join(lines) + "\n```\n"


def replace_tree(readme: str) -> str:
    """The README's text with the tree as it is now."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{file_tree()}\n{END}{after}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(replace_tree(path.read_text(encoding="utf-8")), encoding="utf-8")
