"""Checkpoints are on the disk as a whole or not at all, and only plain types are read."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from relay_lightning.callbacks.checkpoint_io import AtomicCheckpointIO, read_checkpoint


def checkpoint(value: float, size: int = 10) -> dict:
    return {"pytorch-lightning_version": "2.6", "global_step": 3, "state_dict": {"weight": torch.full((size,), value)}}


def test_checkpoint_is_read_as_written(tmp_path: Path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1.0), path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["weight"], torch.ones(10))
    assert list(path.parent.iterdir()) == [path]


def test_previous_checkpoint_stays_when_the_disk_is_full(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1.0), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails instead of the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RuntimeError, match=r"last\.ckpt could not be written .*the one before it is intact"):
            AtomicCheckpointIO().save_checkpoint(checkpoint(2.0, size=1_000_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous_handler)
    assert torch.equal(read_checkpoint(path)["state_dict"]["weight"], torch.ones(10))
    assert list(tmp_path.iterdir()) == [path]


def test_no_previous_checkpoint_is_spoken_of_when_there_is_none(tmp_path: Path):
    (tmp_path / "checkpoints").touch()  # where a folder is needed
    with pytest.raises(RuntimeError, match=r"last\.ckpt could not be written .*; there is none before it\."):
        AtomicCheckpointIO().save_checkpoint(checkpoint(1.0), tmp_path / "checkpoints" / "last.ckpt")


def test_any_flipped_bit_is_found(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1.0), path)
    content = path.read_bytes()
    last_bytes = range(len(content) - 50, len(content))  # where the checksum itself is
    for place in (*range(0, len(content), 17), *last_bytes):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="it is damaged"):
            read_checkpoint(path)


def test_damaged_record_is_found_when_another_program_wrote_the_checkpoint(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint(1.0, size=1000), path)
    content = path.read_bytes()
    assert read_checkpoint(path)["global_step"] == 3
    value = torch.ones(2).numpy().tobytes()
    path.write_bytes(content.replace(value, torch.full((2,), 1.5).numpy().tobytes(), 1))
    with pytest.raises(ValueError, match="it is damaged"):
        read_checkpoint(path)


def test_previous_checkpoint_stays_when_the_process_is_killed_while_writing(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1.0), path)
    code = (
        "import torch; from relay_lightning.callbacks.checkpoint_io import AtomicCheckpointIO\n"
        "big = {'pytorch-lightning_version': '2.6', 'global_step': 4}\n"
        "big['state_dict'] = {'weight': torch.zeros(20_000_000)}\n"
        f"AtomicCheckpointIO().save_checkpoint(big, {str(path)!r})"
    )
    writer = subprocess.Popen([sys.executable, "-c", code])
    part = path.with_name("last.ckpt.part")
    while writer.poll() is None and not (part.exists() and part.stat().st_size > 0):
        time.sleep(0.0005)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    # Whichever came first, the renaming or the kill: what is there is whole.
    assert read_checkpoint(path)["global_step"] in (3, 4)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"last\.ckpt does not exist"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_damaged_file_is_named(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint(1.0, size=100_000), path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a checkpoint", content[:200]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last\.ckpt cannot be read, it is damaged or of another program"):
            read_checkpoint(path)


class Stranger:
    """A type that a checkpoint must not bring in."""


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path):
    path = tmp_path / "last.ckpt"
    torch.save({**checkpoint(1.0), "extra": Stranger()}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    path.write_bytes(pickle.dumps(checkpoint(1.0)))
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(path)


def test_file_without_a_run_is_refused(tmp_path: Path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a checkpoint of a run"):
        read_checkpoint(tmp_path / "model.pt")
