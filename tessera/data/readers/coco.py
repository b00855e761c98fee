"""Captions in COCO's JSON: `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from tessera.data.quality import Tally
from tessera.data.readers.files import FileWorld, Record, read_json
from tessera.data.sample import Image, Sample, pair
from tessera.errors import DataError
from tessera.files import sha256

_Item = tuple[Path, str, tuple[str, ...]]  # picture, its caption here, all its captions


def open_coco(path: str | Path, images: str | Path | None = None) -> FileWorld[_Item]:
    """One pair for each caption; all captions of a picture stay on one side of the split and stand in `meta`.

    Args:
        images: the folder of the pictures; by default looked for beside the file and in the places where
            COCO's own archives put it (`images/`, `train2017/`, `../train2017/`, ...).

    Raises:
        DataError: the file is not a captions file, or the folder of the pictures cannot be found.
    """
    file = Path(path)
    return coco_world(file, read_json(file), images)


def coco_world(file: Path, value: Any, images: str | Path | None = None) -> FileWorld[_Item]:
    """As `open_coco`, from the value that the file holds."""
    if not isinstance(value, dict) or not {"images", "annotations"} <= value.keys():
        raise DataError(f"{file} is not a COCO file: it needs the keys images and annotations")
    listed, annotations = _rows(file, value, "images"), _rows(file, value, "annotations")
    names = {row["id"]: row["file_name"] for row in listed if _is_id(row.get("id")) and _is_name(row.get("file_name"))}
    tally = Tally()
    captions: dict[int | str, list[tuple[str, str]]] = defaultdict(list)
    for number, row in enumerate(annotations):
        text, picture = row.get("caption"), row.get("image_id")
        if not isinstance(text, str) or not text.strip():
            tally.add("without a caption", f"annotation {row.get('id', number)}")
        elif not _is_id(picture) or picture not in names:
            tally.add("of a picture that is not listed", f"annotation {row.get('id', number)}")
        else:
            captions[picture].append((str(row.get("id", number)), text.strip()))
    if not captions:
        raise DataError(f"{file} holds no caption ({tally}); take the captions_*.json of the set")
    folder = Path(images) if images else _find_folder(file, names[next(iter(captions))])
    records = []
    for picture, rows in captions.items():
        every = tuple(text for _, text in rows)
        for name, text in rows:
            records.append(Record(name, str(picture), (folder / names[picture], text, every)))
    return FileWorld(str(file), "pairs", records, _make, [sha256(file)], tally)


def _rows(file: Path, value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of objects under `key`."""
    rows = value[key]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{file} is not a COCO file: {key} is not a list of objects")
    return rows


def _is_id(value: Any) -> TypeGuard[int | str]:
    return isinstance(value, int | str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _make(record: Record[_Item]) -> Sample:
    picture, caption, every = record.item
    meta: Mapping[str, Any] = {"captions": every}
    return pair(Image(picture, key=str(picture)), caption, id=record.id, meta=meta)


def _find_folder(file: Path, name: str) -> Path:
    """The first of the usual folders that holds the picture `name`."""
    part = file.stem.rsplit("_", 1)[-1]  # captions_train2017 -> train2017
    here, above = file.parent, file.parent.parent
    tried = [here, here / "images", here / part, above / part, above / "images", above / "images" / part]
    for folder in tried:
        if (folder / name).exists():
            return folder
    raise DataError(
        f"the pictures of {file} were not found: {name} is in none of"
        f" {', '.join(str(folder) for folder in tried)}; put them there or name their folder"
    )
