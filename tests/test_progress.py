"""Progress: plain lines in a file, a display that fits the terminal, nothing where nobody asked for it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from relay_lightning import progress

SCRIPT = """
import logging, sys
logging.getLogger("elsewhere").addHandler(logging.StreamHandler())
from relay_lightning import progress
figures = {"reward": "0.586", "accuracy": "43.8%", "call ratio": "5.1%", "loss": "-0.0434", "tok/s": "1609"}
with progress.display():
    training = progress.begin("training", 600, "steps", is_kept=True)
    with progress.work("step", 256, "micro-batches") as step, progress.work("rollout", 1024, "completions") as rollout:
        rollout.update(517)
        step.update(130)
        training.update(1, figures)
        logging.getLogger("elsewhere").warning("a message")
        progress._display._bars.refresh()
    training.update(2, figures)
    training.close()
"""


@pytest.fixture
def clock(monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    return seconds


def test_lines_come_now_and_then_and_tell_all_work_when_there_is_no_terminal(clock, capsys):
    with progress.display():
        training = progress.begin("training", 600, "steps", 3)
        with progress.work("rollout", 1024, "completions") as rollout:
            rollout.update(17)
            clock[0] += progress.LINE_INTERVAL_S
            rollout.update(512)
            rollout.update(513)
        training.update(4, {"reward": "0.5"})
        training.close()
    assert capsys.readouterr().err.splitlines() == [
        "training 3/600 steps, rollout 512/1024 completions",
        "training 4/600 steps, reward 0.5",
    ]


def test_nothing_is_shown_without_a_display(capsys):
    with progress.display(is_shown=False), progress.work("rollout", 8, "completions") as work:
        work.update(8)
    assert capsys.readouterr() == ("", "")


def test_display_ends_when_the_work_fails(capsys):
    def fail():
        with progress.display():
            progress.begin("training", 600, "steps")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "training 0/600 steps" in capsys.readouterr().err
    progress.begin("later", 1, "steps").close()
    assert capsys.readouterr().err == ""


def test_display_fits_eighty_columns():
    shown = run_in_terminal(SCRIPT, columns=80)
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()]
    assert max(map(len, lines)) <= 80
    assert any("517/1024 completions" in line for line in lines)
    assert any(re.search(r"130/256 +micro-batches", line) for line in lines)
    assert "a message" in lines  # a line of its own, not the end of a bar
    assert re.search(r"training ━{24} +2/600 steps", shown_last := "\n".join(lines[-4:])), shown_last
    assert "reward 0.586 · accuracy 43.8% · call ratio 5.1% · loss -0.0434 · tok/s 1609" in shown_last


def run_in_terminal(script: str, columns: int) -> str:
    """What a Python script writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
        os.close(slave)
        written = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            written += piece
    os.close(master)
    assert process.returncode == 0, written.decode()
    return written.decode()
