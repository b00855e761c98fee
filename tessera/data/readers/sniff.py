"""A path to the reader of its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tessera.data.readers.coco import coco_world
from tessera.data.readers.files import FileWorld, read_json, read_json_lines
from tessera.data.readers.folder import open_folder
from tessera.data.readers.llava import llava_world
from tessera.data.readers.shards import open_shards
from tessera.errors import DataError

KNOWN = (
    "a folder of pictures or of LeRobot episodes, .tar shards, or a JSON file of LLaVA conversations or COCO captions"
)


def open_reader(path: str | Path) -> FileWorld[Any]:
    """The user's files at `path` as a World: a folder of pictures, WebDataset shards (a path, a brace
    pattern, or a folder of .tar files), LLaVA conversations, COCO captions or LeRobot episodes.

    Raises:
        DataError: nothing there, an unknown format, or nothing usable in it, with counts by reason.
    """
    text, place = str(path), Path(path)
    if text.endswith(".tar") or ("{" in text and not place.exists()):
        return open_shards(text)
    if not place.exists():
        raise DataError(f"{place}: no such file or folder")
    if place.is_dir():
        if (place / "meta" / "info.json").exists():
            from tessera.data.readers.lerobot import lerobot_world  # only now: needs the extra robot

            return lerobot_world(place)
        shards = sorted(place.glob("*.tar"))
        return open_shards(shards) if shards else open_folder(place)
    if place.suffix.lower() in (".json", ".jsonl"):
        return _open_json(place)
    raise DataError(f"{place}: unknown format {place.suffix!r}; known are {KNOWN}")


def _open_json(path: Path) -> FileWorld[Any]:
    value = read_json_lines(path) if path.suffix.lower() == ".jsonl" else read_json(path)
    if isinstance(value, dict) and "annotations" in value:
        return coco_world(path, value)
    if isinstance(value, list) and any(isinstance(row, dict) and "conversations" in row for row in value):
        return llava_world(path, value)
    if isinstance(value, list) and not value:
        raise DataError(f"{path} is an empty list: 0 samples")
    raise DataError(f"{path} is neither a list of LLaVA conversations nor a COCO captions file")
