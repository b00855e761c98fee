"""Omniglot (Lake et al. 2015): characters of many alphabets, each drawn once by each of twenty people.

The sets are read as they are published, `images_background_small1.zip` and `..2.zip` with ALPHABET/CHARACTER/
ID_DRAWER.png, without unpacking. Four of the twenty drawers are held out, so that a character is known and the hand is
new; this is not the published one-shot protocol.
"""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from tessera.data.quality import Tally
from tessera.data.readers.classes import ClassWorld, Labelled
from tessera.data.readers.files import Record
from tessera.data.sample import Image, Sample, pair
from tessera.errors import DataError

HELD_DRAWERS = ("17", "18", "19", "20")


def open_omniglot(folder: str | Path, by: Literal["character", "alphabet"] = "character") -> ClassWorld:
    """The drawings in all `images_background*.zip` of a folder, 105 x 105 pixels, black on white.

    Args:
        by: what a class is; a character is named with its alphabet, "Greek/character07".

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    files = sorted(Path(folder).glob("images_background*.zip"))
    if not files:
        raise DataError(f"{folder} holds no images_background*.zip of Omniglot")
    drawings: dict[str, bytes] = {}
    for file in files:
        try:
            with zipfile.ZipFile(file) as opened:  # the two published files share alphabets
                drawings |= {_inner(name): opened.read(name) for name in opened.namelist() if name.endswith(".png")}
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{file} cannot be read: {error}") from None
    records = []
    for name, data in sorted(drawings.items()):
        alphabet, character, drawing = name.split("/")
        label = alphabet if by == "alphabet" else f"{alphabet}/{character}"
        drawer = PurePosixPath(drawing).stem.rpartition("_")[2]
        records.append(Record(name, drawer, Labelled(Path(name), len(data), label)))
    title = f"{Path(folder).absolute().name} by {by}"
    return ClassWorld(title, records, Tally(), set(HELD_DRAWERS), partial(_make, drawings))


def _inner(name: str) -> str:
    """ALPHABET/CHARACTER/ID_DRAWER.png, without the folder that a zip has around them."""
    return "/".join(PurePosixPath(name).parts[-3:])


def _make(drawings: dict[str, bytes], record: Record[Labelled]) -> Sample:
    return pair(Image(drawings[record.id], key=f"omniglot/{record.id}"), record.item.label, id=record.id)
