"""`SHA256SUMS`: the checksums of an exported model's weight files, in the format that `sha256sum -c` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

CHECKSUM_FILE = "SHA256SUMS"


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all safetensors files of a folder."""
    lines = [f"{_sha256(file)}  {file.name}\n" for file in sorted(folder.glob("*.safetensors"))]
    (folder / CHECKSUM_FILE).write_text("".join(lines), encoding="utf-8")


def require_checksums(name: str, files: Iterable[Path], text: str) -> None:
    """Raises ValueError for a weight file of the model `name` that is not the one whose checksum `text` holds.

    text: that of `SHA256SUMS`; files that it does not name are not checked.
    """
    fields = [line.split() for line in text.splitlines()]
    expected = {field[1].removeprefix("*"): field[0] for field in fields if len(field) == 2}
    for file in files:
        if file.name in expected and _sha256(file) != expected[file.name].lower():
            raise ValueError(
                f"The file {file} of the model {name!r} is damaged or was replaced: its SHA-256 is not the one in "
                f"{CHECKSUM_FILE}; export the model again, or delete {CHECKSUM_FILE} if the file is as it should be."
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
