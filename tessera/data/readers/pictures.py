"""Pictures alone, whatever lies beside them: what self-supervised pre-training learns from."""

from __future__ import annotations

from pathlib import Path

from tessera.data.quality import Tally
from tessera.data.readers.files import FileWorld, Record
from tessera.data.readers.folder import list_files
from tessera.data.sample import Image, Sample
from tessera.errors import DataError

TASK = "pictures"


def open_pictures(path: str | Path) -> FileWorld[Path]:
    """All pictures below `path`, by name. Task `pictures`: a picture and nothing else.

    Raises:
        DataError: no such folder, or no picture in it.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found, _, _ = list_files(root)
    if not found:
        raise DataError(f"{root} holds no picture")
    names = {picture.relative_to(root).as_posix(): picture for picture in sorted(found)}
    records = [Record(name, name, picture) for name, picture in names.items()]
    stamps = [f"{name} {found[picture]}" for name, picture in names.items()]
    return FileWorld(str(root), TASK, records, _make, stamps, Tally())


def _make(record: Record[Path]) -> Sample:
    return Sample((Image(record.item, key=str(record.item)),), id=record.id)
