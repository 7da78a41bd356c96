"""Checksum of a whole checkpoint, in the comment that a zip file may end in.

`torch.save` writes a zip file with a CRC-32 of every record, but names, sizes and padding are in none of them, and
`torch.load` compares none. Our checksum covers every byte of what it wrote.
"""

from __future__ import annotations

import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

PREFIX = b"relay-crc32:"
COMMENT_BYTES = len(PREFIX) + 8
LENGTH_BYTES = 2
"""Bytes of the length of the comment: the last field of a zip file before the comment itself."""
BLOCK_BYTES = 1 << 24


def append_checksum(file: BinaryIO) -> None:
    """Gives the zip file without a comment that `file` was opened for a checksum of itself as its comment."""
    file.seek(-LENGTH_BYTES, 2)
    num_bytes = file.tell()
    comment = PREFIX + b"%08x" % _crc(file, num_bytes)
    file.seek(num_bytes)
    file.write(len(comment).to_bytes(LENGTH_BYTES, "little") + comment)


def is_intact(path: Path) -> bool:
    """Compares the checksum of a zip file, or the CRCs of its records if it has no comment; False for another file."""
    stat = path.stat()
    return _is_intact(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _is_intact(path: Path, num_bytes: int, modified_ns: int) -> bool:  # noqa: ARG001  # a changed file is read again
    try:
        with zipfile.ZipFile(path) as archive:
            if not archive.comment:
                return archive.testzip() is None
    except Exception:  # a damaged file surfaces as any of a dozen types
        return False
    with path.open("rb") as file:
        num_covered = num_bytes - COMMENT_BYTES - LENGTH_BYTES
        file.seek(num_covered)
        length, comment = file.read(LENGTH_BYTES), file.read()
        is_whole = int.from_bytes(length, "little") == COMMENT_BYTES
        return is_whole and comment == PREFIX + b"%08x" % _crc(file, num_covered)


def _crc(file: BinaryIO, num_bytes: int) -> int:
    """CRC-32 of the first bytes of a file."""
    file.seek(0)
    crc = 0
    while num_bytes and (block := file.read(min(BLOCK_BYTES, num_bytes))):
        crc = zlib.crc32(block, crc)
        num_bytes -= len(block)
    return crc
