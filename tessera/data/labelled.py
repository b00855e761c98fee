"""Sources of pictures by name or path: with one class each, what a classifier learns from; or with classes where they
have some, what is learned of pictures alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tessera.data.readers.classes import LABELS, TASK, open_classes
from tessera.data.readers.pictures import TASK as PICTURES
from tessera.data.readers.pictures import open_pictures
from tessera.data.sample import Sample, pair
from tessera.data.source import Source, Split
from tessera.data.worlds import open_world, world_names
from tessera.data.worlds.emoji import EmojiWorld
from tessera.errors import UserError, nearest


class ClassesWorld(Protocol):
    """A World whose task `classes` gives pairs of a picture and the name of its class, one of `classes`."""

    name: str
    tasks: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]: ...

    def source(self, task: str, split: Split = "train") -> Source: ...


class EmojiClasses:
    """Emoji by the group that Unicode sorts them into ("Animals & Nature", "Food & Drink", ...)."""

    def __init__(self, world: EmojiWorld) -> None:
        self.name = "emoji"
        self.tasks: tuple[str, ...] = (TASK,)
        self.world = world

    @property
    def classes(self) -> tuple[str, ...]:
        """The groups, sorted."""
        return tuple(sorted({one.group for one in self.world.emoji}))

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one split."""
        if task not in self.tasks:
            raise UserError(f"the emoji by class have no task {task!r}{nearest(task, self.tasks)}")
        return _Grouped(self.world.source("pairs", split))


class _Grouped:
    """The pictures of a source of emoji with their groups instead of their names."""

    def __init__(self, source: Source) -> None:
        self.name = f"{source.name} by group"
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Sample:
        sample = self.source[index]
        return pair(sample.images[0], sample.meta["group"], id=sample.id)

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()}-group"


def open_labelled(name_or_path: str | Path) -> ClassesWorld:
    """The emoji by group for "emoji", else the user's folder of classes (`tessera.data.readers.classes`).

    Raises:
        UserError, DataError: as `open_classes` and `EmojiWorld`.
    """
    if name_or_path == "emoji":
        return EmojiClasses(EmojiWorld())
    return open_classes(name_or_path)


@dataclass(frozen=True)
class PictureSet:
    """Pictures with or without classes: two sources, and the names of classes where their samples' texts are those."""

    train: Source
    heldout: Source
    classes: tuple[str, ...] = ()


def open_picture_set(data: Sequence[str]) -> PictureSet:
    """The pictures that `tessera train --data` names: emoji by group (also where it names none), another world without
    classes, or a folder, with classes where it has a folder for each or a labels.csv.

    Raises:
        UserError: more than one set, or as `open_world` and `open_classes`.
        DataError: the folder cannot be read.
    """
    if len(data) > 1:
        raise UserError(f"one set of pictures is learned at a time, not {len(data)}: {', '.join(data)}")
    name = data[0] if data else "emoji"
    folder = Path(name)
    if name == "emoji":
        return _with_classes(open_labelled(name))
    if name in world_names() or not folder.is_dir():
        world = open_world(name)
        return PictureSet(world.source(world.tasks[0]), world.source(world.tasks[0], "heldout"))
    inside = [one for one in folder.iterdir() if one.is_dir() and not one.name.startswith(".")]
    if (folder / LABELS).is_file() or len(inside) > 1:
        return _with_classes(open_classes(folder))
    alone = open_pictures(folder)
    return PictureSet(alone.source(PICTURES), alone.source(PICTURES, "heldout"))


def _with_classes(world: ClassesWorld) -> PictureSet:
    return PictureSet(world.source(TASK), world.source(TASK, "heldout"), world.classes)
