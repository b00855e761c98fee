"""A folder of pictures with a target for every pixel, all targets as PNG files of one channel:

- segmentation: `images/`, `masks/` with a mask of the same name for each, whose values are numbers of classes, 255 for
  what is not known, and `classes.txt`, the names of class 0, 1, ... one a line;
- referring: `referring.jsonl`, a line `{"image", "phrase", "mask"}` for each phrase, with paths from that file; the
  mask is above 0 where the thing is;
- depth: `images/`, `depth/` with the same names, in millimetres, 0 for what is not known. Folders within `images/` are
  the classes of scenes, as in NYUv2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.images import open_values
from tessera.data.quality import Tally, check_text
from tessera.data.readers.files import FileWorld, Record, read_json_lines
from tessera.data.readers.folder import list_files
from tessera.data.sample import Dense, Image, Sample, Text
from tessera.errors import BadSample, DataError

IGNORED = 255  # the class of a pixel of which nothing is known
MAX_DEPTH = 10.0  # metres; what is further away is taken for unknown
PLAIN = "room"  # the class of scenes where pictures lie in no folder of a class
PHRASES, NAMES = "referring.jsonl", "classes.txt"


@dataclass(frozen=True)
class Drawn:
    """A picture's file, that of its target, and the words beside them."""

    picture: Path
    target: Path
    words: str = ""


class DenseFolder(FileWorld[Drawn]):
    """A user's pictures with dense targets of one task; see `tessera.data.dense.DenseWorld`."""

    def __init__(
        self, name: str, task: str, records: Sequence[Record[Drawn]], make: Callable[[Record[Drawn]], Sample],
        tally: Tally, classes: tuple[str, ...],
    ) -> None:  # fmt: skip
        stamps = [
            f"{record.id} {record.item.picture.stat().st_size} {record.item.target.stat().st_size} {record.item.words}"
            for record in records
        ]
        super().__init__(name, task, records, make, [*classes, *stamps], tally)
        self.classes, self.max_depth = classes, MAX_DEPTH


def open_dense_folder(path: str | Path, task: str) -> DenseFolder:
    """The pictures below `path` with their targets.

    Args:
        task: "segmentation", "referring" or "depth".

    Raises:
        DataError: the folder or what the task needs of it is missing, or nothing is usable.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; pictures for {task} are a folder with images/ and targets")
    return _FINDERS[task](root)


def _beside(root: Path, folder: str, tally: Tally) -> list[Drawn]:
    """Every picture of images/ with the PNG of its name in another folder, and the folder that it lies in."""
    pictures, _, _ = list_files(root / "images")
    if not pictures:
        raise DataError(f"{root / 'images'} holds no picture; put pictures there and their targets into {folder}/")
    found = []
    for picture in sorted(pictures):
        name = picture.relative_to(root / "images")
        target = (root / folder / name).with_suffix(".png")
        if target.is_file():
            found.append(Drawn(picture, target, name.parts[0] if len(name.parts) > 1 else ""))
        else:
            tally.add(f"without a file in {folder}/", name.as_posix())
    return found


def _segmentation(root: Path) -> DenseFolder:
    file, tally = root / NAMES, Tally()
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{file} cannot be read; write the names of classes 0, 1, ... there, one a line") from None
    classes = tuple(names)
    if not 2 <= len(classes) <= IGNORED or len(set(classes)) < len(classes) or not all(classes):
        raise DataError(f"{file} has {len(classes)} names; 2 to {IGNORED} different ones are needed, none empty")

    def make(record: Record[Drawn]) -> Sample:
        values = open_values(record.item.target)
        there = [int(value) for value in np.unique(values) if value != IGNORED]
        if there and not 0 <= there[0] <= there[-1] < len(classes):
            raise BadSample(
                f"{record.item.target}: class {there[-1]} is not one of the {len(classes)} of {NAMES}, which are"
                " counted from 0"
            )
        masks = np.stack([values == value for value in there]) if there else np.zeros((0, *values.shape), bool)
        return _sample(record, Dense("masks", masks, tuple(classes[value] for value in there)))

    return DenseFolder(str(root), "segmentation", _records(root, _beside(root, "masks", tally)), make, tally, classes)


def _depth(root: Path) -> DenseFolder:
    tally = Tally()
    found = [Drawn(one.picture, one.target, one.words or PLAIN) for one in _beside(root, "depth", tally)]

    def make(record: Record[Drawn]) -> Sample:
        metres = open_values(record.item.target).astype(np.float32) / 1000
        near = np.where(metres <= MAX_DEPTH, metres / MAX_DEPTH, 0)
        return _sample(record, Text(record.item.words, learned=False), Dense("depth", near))

    classes = tuple(sorted({one.words for one in found}))
    return DenseFolder(str(root), "depth", _records(root, found), make, tally, classes)


def _referring(root: Path) -> DenseFolder:
    tally, records = Tally(), list[Record[Drawn]]()
    for number, row in enumerate(read_json_lines(root / PHRASES), start=1):
        name = f"{PHRASES} line {number}"
        given: list[Any] = [row.get(key) for key in ("image", "mask", "phrase")] if isinstance(row, dict) else [None]
        if not all(isinstance(one, str) for one in given):
            tally.add("without image, phrase and mask", name)
            continue
        picture, mask, phrase = given
        drawn = Drawn(root / picture, root / mask, phrase)
        if not (drawn.picture.is_file() and drawn.target.is_file()):
            tally.add("whose picture or mask is missing", name)
        else:
            records.append(Record(name, picture, drawn))

    def make(record: Record[Drawn]) -> Sample:
        phrase = check_text(record.item.words).strip()
        mask = open_values(record.item.target)[None] > 0
        return _sample(record, Text(phrase, learned=False), Dense("masks", mask, (phrase,)))

    return DenseFolder(str(root), "referring", records, make, tally, ())


def _records(root: Path, found: list[Drawn]) -> list[Record[Drawn]]:
    names = [one.picture.relative_to(root).as_posix() for one in found]
    return [Record(name, name, one) for name, one in zip(names, found, strict=True)]


def _sample(record: Record[Drawn], *beside: Text | Dense) -> Sample:
    picture = Image(record.item.picture, learned=False, key=str(record.item.picture))
    return Sample((picture, *beside), id=record.id)


_FINDERS: dict[str, Callable[[Path], DenseFolder]] = {
    "segmentation": _segmentation, "referring": _referring, "depth": _depth
}  # fmt: skip
