"""The rows of a data source: JSONL and Parquet files, folders, and data sets of the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import IO, Any

from relay_lightning.data.presets import PRESETS
from relay_lightning.data.source import DEFAULT_SPLIT, DataSource
from relay_lightning.json_lines import parse_row

PlacedRow = tuple[str, Mapping[str, Any]]
"""Where a row stands, for messages, and its columns."""

FILE_SUFFIXES = (".jsonl", ".json", ".gz", ".parquet", ".csv", ".tsv")
"""Suffixes by which a path is a file and no hub id, though it may not exist."""
READ_FORMATS = "; what is read is JSONL (a JSON object a line, plain or gzip) and Parquet"
GZIP_MAGIC = b"\x1f\x8b"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def open_rows(source: DataSource) -> Iterator[PlacedRow]:
    """The rows in their order, read as they are asked for.

    Raises FileNotFoundError for a path that leads nowhere, ModuleNotFoundError when the extra `data` is needed and not
    installed, RuntimeError when a data set cannot be opened, and ValueError naming the file and line or row of one
    that cannot be read.
    """
    path = Path(os.path.expanduser(source.path))
    if os.path.isdir(path):
        return _data_set_rows(source, str(path))
    if _HUB_ID.fullmatch(source.path) and not os.path.isfile(path) and path.suffix.lower() not in FILE_SUFFIXES:
        return _data_set_rows(source, source.path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"The data file {path} does not exist.{_known_names(path)}")
    if (source.split, source.subset, source.revision) != (DEFAULT_SPLIT, None, None):
        raise ValueError(f"{path} is a file; only folders and Hugging Face data sets have split, subset and revision.")
    return _parquet_rows(path) if path.suffix.lower() == ".parquet" else _jsonl_rows(path)


def _known_names(path: Path) -> str:
    """For a word that could have been meant as the name of a data set."""
    if path.suffix or len(path.parts) > 1:
        return ""
    return f" Data sets with a name are tiny:train, tiny:test, {', '.join(PRESETS)}."


def _jsonl_rows(path: Path) -> Iterator[PlacedRow]:
    """Lines without text count as no rows; a byte order mark is no text."""
    try:
        with _open_text(path) as lines:
            for line_number, line in enumerate(lines, start=1):
                if text := line.lstrip("\ufeff").strip():
                    place = f"{path}:{line_number}"
                    yield place, parse_row(text, place, decoder=_DECODER, hint=READ_FORMATS)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"The data file {path} cannot be read: {_one_line(error)}.") from error


def _open_text(path: Path) -> IO[str]:
    """The file as lines, decompressed if it is gzip; bytes that are not UTF-8 become lone surrogates."""
    with path.open("rb") as file:
        opener: Any = gzip.open if file.read(2) == GZIP_MAGIC else open
    return opener(path, "rt", encoding="utf-8", errors="surrogateescape")


def _exact_number(digits: str) -> Decimal:
    """A number as it stands in the file, of any length; NaN for an exponent beyond all bounds."""
    try:
        return Decimal(digits)
    except InvalidOperation:
        return Decimal("NaN")


_DECODER = json.JSONDecoder(parse_int=_exact_number, parse_float=_exact_number)


def _parquet_rows(path: Path) -> Iterator[PlacedRow]:
    parquet = _import("pyarrow.parquet", path)
    arrow_error = _import("pyarrow", path).ArrowException
    row_index = count()
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from ((f"{path} row {next(row_index)}", row) for row in batch.to_pylist())
    except (OSError, ValueError, OverflowError, arrow_error) as error:
        raise ValueError(f"The data file {path} cannot be read as Parquet: {_one_line(error)}") from error


def _data_set_rows(source: DataSource, path: str) -> Iterator[PlacedRow]:
    for row_index, row in enumerate(_open_data_set(source, path)):
        yield f"{source} row {row_index}", row


def _open_data_set(source: DataSource, path: str) -> Any:
    datasets = _import("datasets", path)
    try:
        if _is_saved_to_disk(Path(path)):
            loaded = datasets.load_from_disk(path)
            return loaded[source.split] if isinstance(loaded, dict) else loaded
        return datasets.load_dataset(path, source.subset, split=source.split, revision=source.revision)
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        hint = "" if Path(path).is_dir() else _local_copy_hint(source)
        raise RuntimeError(f"The data set {source} cannot be opened.{hint} Reason: {_one_line(error)}") from error


def _is_saved_to_disk(folder: Path) -> bool:
    """Whether the folder is what `save_to_disk` of the datasets library writes."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _local_copy_hint(source: DataSource) -> str:
    """How to go on without network: the same columns of a folder or file."""
    keys = {key: value for key, value in source.changed_keys().items() if key not in ("path", "revision")}
    mapping = ", ".join(["path: FOLDER_OR_FILE", *(f"{key}: {json.dumps(value)}" for key, value in keys.items())])
    return (
        " It is not a local folder, so the Hugging Face hub was asked; "
        f"without network, copy it here and write {{{mapping}}} in its place."
    )


def _import(module: str, path: str | Path) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"Reading {path} needs the package datasets, which is not installed: pip install 'relay-lightning[data]'."
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
