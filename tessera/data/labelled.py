"""Sources of pictures with one class each, by name or path: what a classifier learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from tessera.data.readers.classes import TASK, open_classes
from tessera.data.sample import Sample, pair
from tessera.data.source import Source, Split
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
