"""AtomicCheckpointIO: a checkpoint is on the disk as a whole, or not at all, and a damaged one is not read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from typing_extensions import override

from relay_lightning.callbacks.checksum import append_checksum, is_intact

REQUIRED_KEYS = ("state_dict", "global_step", "pytorch-lightning_version")
"""What every checkpoint of Lightning has."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the file, forces it to the disk, and renames; reads plain types only.

    A kill at any moment, a full disk or a power cut leaves the checkpoint that was there before.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Raises RuntimeError naming the file if it cannot be written; nothing is left of it then."""
        del storage_options  # where a file lies is all there is to say about it
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb+") as file:
                torch.save(checkpoint, file)
                append_checksum(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
            kept = "the one before it is intact" if path.exists() else "there is none before it"
            raise RuntimeError(f"The checkpoint {path} could not be written ({error}); {kept}.") from error
        finally:
            if part.exists():
                part.unlink()

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """The checkpoint at `path`; see `read_checkpoint`."""
        del weights_only  # nothing but plain types is ever loaded, whatever the caller asks for
        return read_checkpoint(Path(path), map_location)


def read_checkpoint(path: Path, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """A checkpoint of plain types, after its checksums were compared.

    Raises FileNotFoundError if there is none, ValueError if the file is damaged or not a checkpoint of a run.
    """
    if path.is_dir():
        raise ValueError(f"The checkpoint {path} is a folder; name a file in it, such as last.ckpt.")
    if not path.exists():
        raise FileNotFoundError(f"The checkpoint {path} does not exist.")
    if not is_intact(path):
        raise ValueError(f"The checkpoint {path} cannot be read, it is damaged or of another program.")
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file surfaces as any of a dozen types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"The checkpoint {path} cannot be read, it is damaged or of another program: {reason}"
        ) from error
    missing = [key for key in REQUIRED_KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"{path} is not a checkpoint of a run: it lacks '{missing[0]}'.")
    return checkpoint


def _sync_folder(folder: Path) -> None:
    """Forces the renaming itself to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
