"""Pictures sorted by class: a folder for each class, or `labels.csv` beside them.

1. `labels.csv` with the columns `file_name` and `label` (or `class`), which names every picture of its folder once;
2. else each folder in the given one is a class, with all pictures below it.
Where the given folder holds `train` and one of `val`, `valid`, `validation`, `test`, each of the two is read so, and
the second is the held-out split; else some pictures of each class are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from tessera.data.quality import Tally
from tessera.data.readers.files import FileWorld, Record, held_out_groups
from tessera.data.readers.folder import list_files, read_table
from tessera.data.sample import Image, Sample, pair
from tessera.errors import DataError, UserError

LABELS = "labels.csv"
LABEL_KEYS = ("label", "class")
HELD_FOLDERS = ("val", "valid", "validation", "test")  # the first that is there
TASK = "classes"
_WAYS = f"give each class a folder of its own, or write {LABELS} with the columns file_name and label"


@dataclass(frozen=True)
class Labelled:
    """A picture's file, its size in bytes and its class."""

    file: Path
    size: int
    label: str


class ClassWorld(FileWorld[Labelled]):
    """A user's pictures with one class each. Task `classes`: the picture, then the name of its class."""

    def __init__(
        self, name: str, records: Sequence[Record[Labelled]], tally: Tally, held: Set[str],
        make: Callable[[Record[Labelled]], Sample] | None = None,
    ) -> None:  # fmt: skip
        stamps = [f"{record.id} {record.item.size} {record.item.label}" for record in records]
        super().__init__(name, TASK, records, make or _make, stamps, tally, held)
        self.classes = tuple(sorted({record.item.label for record in records}))
        if len(self.classes) < 2:
            raise UserError(
                f"{name} holds {len(records)} pictures of one class ({self.classes[0]!r}); a classifier needs two"
                f" classes or more: {_WAYS}"
            )


def open_classes(path: str | Path) -> ClassWorld:
    """The pictures below `path` with their classes.

    Raises:
        DataError: no such folder, no picture, or a table that cannot be read.
        UserError: no classes or a single one; a labels file that disagrees with its folder, with the first
            disagreements; held-out classes that are not trained.
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; pictures by class are a folder of class folders")
    tally = Tally()
    held_folder = next((root / name for name in HELD_FOLDERS if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or held_folder is None:
        found = _labelled(root, tally)
        return ClassWorld(str(root), _records(root, found), tally, _some_of_each(root, found))
    train, held = _labelled(root / "train", tally), _labelled(held_folder, tally)
    unknown = sorted({one.label for one in held} - {one.label for one in train})
    if unknown:
        raise UserError(
            f"{held_folder} has {len(unknown)} classes that {root / 'train'} has not ({', '.join(unknown[:3])});"
            " sort them alike"
        )
    for other in sorted(root.iterdir()):
        if other.is_dir() and other not in (root / "train", held_folder) and not other.name.startswith("."):
            tally.add("left alone beside train", other.name)
    return ClassWorld(str(root), _records(root, train + held), tally, {_name(root, one) for one in held})


def _make(record: Record[Labelled]) -> Sample:
    return pair(Image(record.item.file, key=str(record.item.file)), record.item.label, id=record.id)


def _name(root: Path, one: Labelled) -> str:
    return one.file.relative_to(root).as_posix()


def _records(root: Path, found: list[Labelled]) -> list[Record[Labelled]]:
    return [Record(name, name, one) for one in found for name in [_name(root, one)]]


def _some_of_each(root: Path, found: list[Labelled]) -> set[str]:
    """Pictures of each class that are held out; none of a class that has a single one."""
    held = set()
    for label in {one.label for one in found}:
        names = {_name(root, one) for one in found if one.label == label}
        if len(names) > 1:
            held |= held_out_groups(names)
    return held


def _labelled(folder: Path, tally: Tally) -> list[Labelled]:
    """The pictures of one folder in the order of their names."""
    pictures, _, _ = list_files(folder)
    if not pictures:
        raise DataError(f"{folder} holds no picture")
    table = folder / LABELS
    if table.is_file():
        labels = _from_table(table, pictures)
    else:
        labels = {}
        for picture in pictures:
            if picture.parent == folder:
                tally.add("in no class folder", picture.name)
            else:
                labels[picture] = picture.relative_to(folder).parts[0]
        if not labels:
            raise UserError(f"{folder} holds {len(pictures)} pictures and no class folders; {_WAYS}")
    return [Labelled(picture, pictures[picture], labels[picture]) for picture in sorted(labels)]


def _from_table(table: Path, pictures: dict[Path, int]) -> dict[Path, str]:
    """The class of each picture. Raises UserError where the table disagrees with the folder that it lies in."""
    wrong = Tally()
    labels: dict[Path, str] = {}

    def short(picture: Path) -> str:
        return picture.relative_to(table.parent).as_posix() if picture.is_relative_to(table.parent) else str(picture)

    rows = [(picture, text.strip()) for picture, text in read_table(table, wrong, LABEL_KEYS)]
    known = {label for _, label in rows}
    for picture, label in rows:
        if picture not in pictures:
            wrong.add("named but not there", short(picture))
        elif not label:
            wrong.add("without a label", short(picture))
        elif labels.setdefault(picture, label) != label:
            wrong.add("with two labels", f"{short(picture)}: {labels[picture]} and {label}")
        elif picture.parent != table.parent and picture.parent.name in known - {label}:
            wrong.add("in the folder of another class", f"{short(picture)}: {label}")
    for picture in sorted(pictures.keys() - {picture for picture, _ in rows}):
        wrong.add("there but not named", short(picture))
    if wrong:
        raise UserError(f"{table} disagrees with its folder: {wrong}; correct the table or move the pictures")
    return labels
