"""Architectures that the project knows by heart, so that memory is planned without network."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "published"
OWNER = "Qwen/"


def published_config_folder(name: str) -> Path | None:
    """The folder with the config.json that the hub publishes under `name`, such as Qwen/Qwen3-8B, if it is known."""
    folder = FOLDER / name.removeprefix(OWNER)
    is_known = name.startswith(OWNER) and (folder / "config.json").is_file()
    return folder if is_known else None
