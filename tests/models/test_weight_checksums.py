"""Weights whose checksums are kept beside them: any flipped bit is seen before the model is used."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from relay_lightning.models.loading import load_model
from relay_lightning.models.weight_checksums import require_checksums, write_checksums


@pytest.fixture
def folder(small_pair: Any, tmp_path: Path) -> Path:
    """A copy of the small student with checksums."""
    shutil.copytree(small_pair.student, tmp_path / "student")
    write_checksums(tmp_path / "student")
    return tmp_path / "student"


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_every_flipped_bit_is_refused(folder: Path) -> None:
    file, text = folder / "model.safetensors", (folder / "SHA256SUMS").read_text()
    require_checksums("student", [file], text)
    rng = random.Random(0)
    for _ in range(60):
        bit = rng.randrange(file.stat().st_size * 8)
        flip(file, bit)
        with pytest.raises(ValueError, match=r"The file .*model.safetensors of the model 'student' is damaged or was"):
            require_checksums("student", [file], text)
        flip(file, bit)


def test_a_model_with_a_flipped_weight_is_not_loaded(folder: Path) -> None:
    load_model(str(folder))
    file = folder / "model.safetensors"
    flip(file, (file.stat().st_size - 1) * 8)
    with pytest.raises(ValueError, match=r"is damaged or was replaced: its SHA-256 is not the one in SHA256SUMS"):
        load_model(str(folder))


@pytest.mark.parametrize("text", [None, "", "something else\n", f"{'0' * 64}  other.safetensors\n"])
def test_weights_without_a_checksum_are_loaded(folder: Path, text: str | None) -> None:
    (folder / "SHA256SUMS").unlink()
    if text is not None:
        (folder / "SHA256SUMS").write_text(text)
    load_model(str(folder))
