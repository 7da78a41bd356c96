"""Notices about the data, each given once, by one process of a run."""

from __future__ import annotations

import logging

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from relay_lightning.terminal import escape_record, one_line, quote

logger = logging.getLogger(__name__)
logger.addFilter(escape_record)


class Remarks:
    """Counts of the rows that a remark is true of, with the first of them."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[int, str]] = {}

    def add(self, remark: str, place: str, text: str | None = None) -> None:
        """Counts the row at `place`; `text` is what is shown of it if it is the first."""
        shown = f" ({quote(text)})" if text else ""
        num_rows, first = self._rows.get(remark, (0, place + shown))
        self._rows[remark] = (num_rows + 1, first)

    def __str__(self) -> str:
        said = (f"{remark} in {num} of its rows, first in {first}" for remark, (num, first) in self._rows.items())
        return "; ".join(said)


def announce(message: str) -> None:
    """Shows the message as information, from one process of a run."""
    rank_zero_info(one_line(message))


@rank_zero_only
def notify(message: str) -> None:
    """Logs the message as a warning."""
    logger.warning(message)
