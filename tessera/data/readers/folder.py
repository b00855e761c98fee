"""A folder of pictures with captions.

Captions are looked for in this order, the first kind found anywhere in the folder being taken for all of it:
1. `metadata.jsonl` or a `.csv` with the columns `file_name` and `text` (or `caption`), names relative to that
file; 2. a `.txt` beside each picture (also for pictures that the metadata do not name);
3. the name of the folder that a picture lies in, for sets sorted by class.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from tessera.data.images import SUFFIXES
from tessera.data.quality import MAX_TEXT_BYTES, Tally, check_text
from tessera.data.readers.files import FileWorld, Record, read_json_lines
from tessera.data.sample import Image, Sample, pair
from tessera.errors import BadSample, DataError

CAPTION_KEYS = ("text", "caption")


def open_folder(path: str | Path) -> FileWorld[tuple[Path, str]]:
    """The pictures below `path` as pairs.

    Raises:
        DataError: no picture, none with a caption, or metadata that cannot be read.
    """
    root = Path(path)
    pictures, texts, tables = list_files(root)
    if not pictures:
        raise DataError(
            f"{root} holds no picture: {len(texts)} text files and {len(tables)} tables were seen,"
            f" but no {', '.join(SUFFIXES)}"
        )
    tally = Tally()
    captions = {place: text for table in tables for place, text in read_table(table, tally)}
    for place in captions:
        if place not in pictures:
            tally.add("named in metadata but missing", str(place))
    records, stamps = [], []
    for picture, size in sorted(pictures.items()):
        name = picture.relative_to(root).as_posix()
        try:
            caption = _caption(picture, root, captions, texts)
        except BadSample as error:
            tally.add(str(error), name)
            continue
        records.append(Record(name, name, (picture, caption)))
        stamps.append(f"{name} {size} {caption}")
    return FileWorld(str(root), "pairs", records, _make, stamps, tally)


def _make(record: Record[tuple[Path, str]]) -> Sample:
    picture, caption = record.item
    return pair(Image(picture, key=str(picture)), caption, id=record.id)


def list_files(root: Path) -> tuple[dict[Path, int], set[Path], list[Path]]:
    """Pictures with their sizes, caption files, and tables below `root`; hidden files and folders are passed
    over."""
    pictures: dict[Path, int] = {}
    texts: set[Path] = set()
    tables: list[Path] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder) / name
            suffix = file.suffix.lower()
            if name.startswith("."):
                continue
            if suffix in SUFFIXES:
                pictures[file] = file.stat().st_size if file.exists() else 0
            elif suffix == ".txt":
                texts.add(file)
            elif name == "metadata.jsonl" or suffix == ".csv":
                tables.append(file)
    return pictures, texts, tables


def read_table(path: Path, tally: Tally, keys: tuple[str, str] = CAPTION_KEYS) -> Iterator[tuple[Path, str]]:
    """Picture and text of each row of a `.csv` or `.jsonl` file with the columns file_name and one of `keys`.

    Raises:
        DataError: it cannot be read, or lacks a column.
    """
    if path.suffix == ".csv":
        with open(path, encoding="utf-8-sig", newline="") as file:
            try:
                rows = list(csv.DictReader(file))
            except (csv.Error, UnicodeDecodeError):
                raise DataError(f"{path} cannot be read as a UTF-8 table of comma-separated values") from None
    else:
        rows = read_json_lines(path)
    key = next((key for key in keys if rows and isinstance(rows[0], dict) and key in rows[0]), None)
    if rows and (key is None or "file_name" not in rows[0]):
        found = ", ".join(str(name) for name in rows[0]) if isinstance(rows[0], dict) else "no names"
        raise DataError(f"{path} needs the columns file_name and {keys[0]} (or {keys[1]}); it has {found}")
    for number, row in enumerate(rows, start=1):
        name, text = (row.get("file_name"), row.get(key)) if isinstance(row, dict) else (None, None)
        if isinstance(name, str) and isinstance(text, str):
            yield Path(os.path.normpath(path.parent / name)), text
        else:
            tally.add(f"without file_name or {keys[0]}", f"{path.name} row {number}")


def _caption(picture: Path, root: Path, captions: dict[Path, str], texts: set[Path]) -> str:
    """The caption of one picture. Raises BadSample with the reason where it has none."""
    if picture in captions:
        return check_text(captions[picture]).strip()
    beside = picture.with_suffix(".txt")
    if beside in texts:
        if beside.stat().st_size > MAX_TEXT_BYTES:
            raise BadSample("a caption over 100 kB")
        return check_text(beside.read_bytes().decode("utf-8-sig", "replace")).strip()
    if captions or texts or picture.parent == root:
        raise BadSample("without a caption")
    return picture.parent.name.replace("_", " ").replace("-", " ")
