"""Files that a command writes: whole or not at all, by one process at a time, and never over what is there already."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_atomically(path: Path, text: str) -> None:
    """Puts `text` under `path` such that a kill or a full disk leaves either the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # a name that no other file has
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def lock(path: Path) -> IO[bytes]:
    """Opens `path` for reading and appending, creating it, and locks it until it is closed or the process ends.

    Raises BlockingIOError while another process holds the lock, OSError for a path that cannot be written.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} exists already and is no file; name another output.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}.") from error
    try:
        _lock(file.fileno(), path)
    except BlockingIOError:
        file.close()
        raise
    return file


@contextmanager
def locked_file(path: Path) -> Iterator[IO[bytes]]:
    """The file of `lock` within the block; one that was made for it and stayed empty is removed."""
    is_new = not path.exists()
    with lock(path) as file:
        try:
            yield file
        finally:
            if is_new and path.exists() and not path.stat().st_size:
                path.unlink()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Reserves `path` for this command, which writes it within the block; to be entered before expensive work.

    An empty, locked file holds the place. Raises FileExistsError if the file exists and is not empty, and as `lock`
    does.
    """
    with locked_file(path) as file:
        if os.fstat(file.fileno()).st_size:
            raise FileExistsError(f"{path} exists already and is not overwritten; move it away, or name another file.")
        yield path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Reserves the folder `path` for this command, which fills it within the block; entered before expensive work.

    A folder that was made and stayed empty is removed. Raises FileExistsError if the path holds anything, and
    otherwise as `lock` does.
    """
    is_new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileExistsError:
        raise FileExistsError(f"The output folder {path} exists already as a file; name another folder.") from None
    except OSError as error:
        raise OSError(f"The output folder {path} cannot be written: {error.strerror}.") from error
    try:
        _lock(handle, path)
        if any(path.iterdir()):
            raise FileExistsError(f"The output folder {path} exists and is not empty; name another folder.")
        try:
            yield path
        finally:
            if is_new and not any(path.iterdir()):
                path.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"Another command is writing {path}; wait until it ends, or stop it.") from None
