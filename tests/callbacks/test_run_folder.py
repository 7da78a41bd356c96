"""The run folder: what counts as a run, who may continue it."""

import subprocess
import sys
from pathlib import Path

import pytest

from relay_lightning.callbacks.run_folder import RunFolder


def test_empty_folder_is_free(tmp_path: Path):
    folder = RunFolder(tmp_path / "grpo")
    assert not folder.holds_run()
    folder.claim(is_continued=False)


@pytest.mark.parametrize("name", ["config.yaml", "rollouts.jsonl", "summary.json", "checkpoints/last.ckpt"])
def test_folder_with_any_file_of_a_run_is_refused_and_left_alone(tmp_path: Path, name: str):
    kept = tmp_path / "grpo" / name
    kept.parent.mkdir(parents=True)
    kept.write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"--ckpt_path last, or start in another folder with --run_dir .*grpo-2\."
    ):
        RunFolder(tmp_path / "grpo").claim(is_continued=False)
    assert kept.read_text() == "precious"
    RunFolder(tmp_path / "grpo").claim(is_continued=True)


def test_folder_is_free_when_its_run_ended_before_the_first_checkpoint(tmp_path: Path):
    folder = RunFolder(tmp_path / "grpo")
    folder.claim(is_continued=False).close()
    for left in (folder.rollouts(), folder.baseline, folder.checkpoints / "last.ckpt.part"):
        left.parent.mkdir(exist_ok=True)
        left.touch()
    folder.claim(is_continued=False).close()
    folder.last_checkpoint.touch()
    with pytest.raises(FileExistsError):
        folder.claim(is_continued=False)


def test_the_folder_that_is_proposed_is_free(tmp_path: Path):
    for name in ("grpo", "grpo-2", "grpo-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "grpo" / "config.yaml").touch()
    with pytest.raises(FileExistsError, match=r"grpo-4\.$"):
        RunFolder(tmp_path / "grpo").claim(is_continued=False)


def test_folder_is_refused_while_another_process_works_in_it(tmp_path: Path):
    code = (
        "from pathlib import Path; from relay_lightning.callbacks.run_folder import RunFolder;"
        f"lock = RunFolder(Path({str(tmp_path)!r})).claim(is_continued=False); print('claimed', flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(RuntimeError, match="still running"):
            RunFolder(tmp_path).claim(is_continued=True)
    finally:
        other.kill()
        other.wait()
    RunFolder(tmp_path).claim(is_continued=True)


def test_contains_tells_the_own_checkpoints_from_others(tmp_path: Path):
    folder = RunFolder(tmp_path / "grpo")
    assert folder.contains(folder.last_checkpoint)
    assert not folder.contains(tmp_path / "grpo-2" / "checkpoints" / "last.ckpt")
