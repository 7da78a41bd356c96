"""Files that a command writes: whole or not there, one writer at a time, nothing that is there already is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from relay_lightning.files import lock, new_file, new_folder, write_atomically


def test_file_is_whole_or_the_old_one_when_writing_fails(tmp_path: Path):
    path = tmp_path / "summary.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_beside_it_is_touched_when_one_is_written(tmp_path: Path):
    neighbour = tmp_path / "summary.json.part"
    neighbour.write_text("precious")
    write_atomically(tmp_path / "summary.json", "new")
    assert neighbour.read_text() == "precious"


@pytest.mark.parametrize("reserve", [new_file, new_folder])
def test_nothing_is_left_of_a_reserved_name_when_nothing_was_written(tmp_path: Path, reserve):
    with pytest.raises(RuntimeError, match="no model"), reserve(tmp_path / "new" / "out"):
        raise RuntimeError("no model")
    assert not (tmp_path / "new" / "out").exists()
    with reserve(tmp_path / "new" / "out"):
        pass


def test_a_reserved_file_is_written_once(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    with new_file(path):
        write_atomically(path, "row\n")
    with pytest.raises(FileExistsError, match=r"out\.jsonl exists already and is not overwritten"), new_file(path):
        pytest.fail("entered")
    assert path.read_text() == "row\n"


def test_an_empty_folder_may_be_filled_and_a_filled_one_is_refused(tmp_path: Path):
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(RuntimeError, match="no model"), new_folder(folder):
        raise RuntimeError("no model")
    with new_folder(folder):
        (folder / "model.safetensors").write_text("weights")
    with pytest.raises(FileExistsError, match=r"out exists and is not empty"), new_folder(folder):
        pytest.fail("entered")
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("reserve", "sentence"), [(new_file, "exists already and is no file"), (new_folder, "exists already as a file")]
)
def test_a_name_of_the_other_kind_is_refused(tmp_path: Path, reserve, sentence):
    path = tmp_path / "taken"
    path.mkdir() if reserve is new_file else path.write_text("precious")
    with pytest.raises(FileExistsError, match=sentence), reserve(path):
        pytest.fail("entered")
    assert path.exists()


@pytest.mark.parametrize("reserve", [new_file, new_folder, lock])
def test_an_output_whose_folder_is_a_file_is_refused_by_name(tmp_path: Path, reserve):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OSError, match=r"file/out cannot be written: "), reserve(tmp_path / "file" / "out"):
        pytest.fail("entered")


@pytest.mark.parametrize("reserve", ["new_file", "new_folder"])
def test_an_output_that_another_process_is_writing_is_refused_until_that_one_ends(tmp_path: Path, reserve):
    path = tmp_path / "out"
    code = (
        f"from pathlib import Path; from relay_lightning.files import {reserve}\n"
        f"with {reserve}(Path({str(path)!r})): print('reserved', flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    own = {"new_file": new_file, "new_folder": new_folder}[reserve]
    try:
        assert other.stdout.readline() == "reserved\n"
        with pytest.raises(BlockingIOError, match=r"Another command is writing .*out; wait"), own(path):
            pytest.fail("entered")
        assert path.exists()
    finally:
        other.kill()
        other.wait()
    with own(path):
        pass
