"""The pass rates that `filter` keeps beside its output: its own unfinished work, told apart from any other file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import IO, Any

from relay_lightning.data.records import Problem
from relay_lightning.json_lines import json_line, read_rows

REMEDY = "choose another output, or move the file away"


def append_rates(file: IO[bytes], settings: Mapping[str, Any], day: date, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends the rows and forces them to the disk; a new file begins with the settings and the date of its prompts."""
    if os.fstat(file.fileno()).st_size == 0:
        file.write(json_line({"settings": settings, "day": day.isoformat()}).encode())
    file.writelines(json_line(row).encode() for row in rows)
    file.flush()
    os.fsync(file.fileno())


def read_rates(path: Path, settings: Mapping[str, Any], problems: Sequence[Problem]) -> list[dict[str, Any]]:
    """The rows known so far, those of the first problems; a last line that a kill left unfinished is cut off.

    Raises ValueError, and leaves the file as it is, if `filter` did not write it or wrote it with other settings, or if
    a row is damaged or of another problem.
    """
    header, rows, stop = _read_file(path)
    if header is None and not _begins_header(path.read_bytes(), settings):
        raise ValueError(f"{path} was not written by filter; {REMEDY}.")
    if header is not None and header["settings"] != json.loads(json_line(settings)):
        raise ValueError(f"{path} was made with other settings ({_difference(header, settings)}); {REMEDY}.")
    if len(rows) > len(problems) or not all(map(_is_of, rows, problems)):
        raise ValueError(f"{path} holds a row that is damaged or of another problem; {REMEDY}.")
    os.truncate(path, stop)
    return rows


def require_own_files(output: Path, path: Path) -> None:
    """Raises ValueError or FileExistsError for files of other commands, before the problems are known."""
    _, rows, _ = _read_file(path) if path.is_file() else (None, [], 0)
    if output.exists() and not all("pass_rate" in row for row in rows):
        raise ValueError(f"{path} was not written by filter; {REMEDY}.")
    require_own_output(output, rows)


def keep_rows(rates: Sequence[Mapping[str, Any]], threshold: float) -> list[Mapping[str, Any]]:
    """The rows of the problems that are solved often enough."""
    return [row for row in rates if row["pass_rate"] >= threshold]


def require_own_output(path: Path, rates: Sequence[Mapping[str, Any]]) -> None:
    """Raises FileExistsError if there is an output that is not made of these rates, with whatever threshold."""
    if not path.exists():
        return
    thresholds = {math.inf, *(row["pass_rate"] for row in rates)}
    if path.is_file() and path.read_bytes() in (output_text(keep_rows(rates, t)).encode() for t in thresholds):
        return
    raise FileExistsError(f"{path} exists already and is not the output of this filter; {REMEDY}.")


def output_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as lines of JSON."""
    return "".join(map(json_line, rows))


def begun_on(path: Path) -> date:
    """The date in the header of a file of pass rates, which prompts are rendered with; today for a new file."""
    if path.is_file():
        with path.open(encoding="utf-8") as file, suppress(ValueError, TypeError, KeyError):
            return date.fromisoformat(json.loads(file.readline())["day"])
    return date.today()


def _read_file(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]], int]:
    """Header (None without a whole line), rows, and the position in bytes where the last of them ends."""
    found = list(read_rows(path, hint=f"; {REMEDY}"))
    if found and not {"settings"} <= found[0][1].keys() <= {"settings", "day"}:
        raise ValueError(f"{path} was not written by filter; {REMEDY}.")
    return (found[0][1], [row for _, row in found[1:]], found[-1][0]) if found else (None, [], 0)


def _begins_header(content: bytes, settings: Mapping[str, Any]) -> bool:
    """True for a header with these settings that a kill left unfinished."""
    begin = json_line({"settings": settings}).encode()[: -len("}\n")]
    return content.startswith(begin) or begin.startswith(content)


def _is_of(row: Mapping[str, Any], problem: Problem) -> bool:
    """True for a whole row of the problem."""
    has_figures = isinstance(row.get("pass_rate"), float) and isinstance(row.get("num_unparsable"), int)
    own = (problem.problem_id, problem.question, problem.answer)
    return has_figures and (row.get("problem_id"), row.get("question"), row.get("answer")) == own


def _difference(header: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The settings that a header states otherwise."""
    found = header["settings"] if isinstance(header["settings"], dict) else {}
    changed = [
        f"{name} was {found.get(name)!r} and is {value!r}"
        for name, value in settings.items()
        if found.get(name) != value
    ]
    return "; ".join(changed)
