"""Pictures with a target for every pixel: worlds of them by name or path, and samples as the arrays that models learn
from.

Legend: S side of a square input; L words of a phrase.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from PIL import Image as PIL

from tessera.data.images import Pixels, fit_square
from tessera.data.readers.dense import IGNORED, MAX_DEPTH, open_dense_folder
from tessera.data.sample import Dense, Sample
from tessera.data.source import Source, Split
from tessera.data.worlds.scenes.graph import SHAPES
from tessera.data.worlds.scenes.world import BACKGROUND, ScenesWorld
from tessera.errors import BadSample, UserError, nearest

Task = Literal["segmentation", "referring", "depth"]
TASKS: tuple[Task, ...] = get_args(Task)


class DenseWorld(Protocol):
    """A World of pictures with dense targets of one task.

    `classes` are those of pixels for "segmentation", of whole pictures for "depth", and none for "referring";
    `max_depth` is what a depth of 1 stands for, in the world's unit.
    """

    name: str
    tasks: tuple[str, ...]
    classes: tuple[str, ...]
    max_depth: float

    def source(self, task: str, split: Split = "train") -> Source: ...


class DenseScenes:
    """The scenes world as a DenseWorld: classes of pixels are the shapes and the background."""

    def __init__(self, task: Task, world: ScenesWorld | None = None) -> None:
        self.world, self.name, self.max_depth = world or ScenesWorld(), "scenes", 1.0
        self.tasks: tuple[str, ...] = (task,)
        known = {"segmentation": (BACKGROUND, *SHAPES), "depth": ("scene",), "referring": ()}
        self.classes: tuple[str, ...] = known[task]

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one split; there is one task."""
        return self.world.source(task, split)


def check_task(task: str) -> Task:
    """`task` itself. Raises UserError where there is no such one."""
    if task not in TASKS:
        raise UserError(f"there is no dense task {task!r}{nearest(task, TASKS)}")
    return task


def open_dense(name_or_path: str | Path, task: str) -> DenseWorld:
    """Drawn shapes for "scenes", else the user's folder (`tessera.data.readers.dense`).

    Raises:
        UserError, DataError: there is no such task, or as `open_dense_folder`.
    """
    known = check_task(task)
    return DenseScenes(known) if name_or_path == "scenes" else open_dense_folder(name_or_path, known)


@dataclass(frozen=True)
class DenseReader:
    """Samples of a DenseWorld as arrays.

    Args:
        pixels: how pictures enter; targets are cut out and mirrored with them.
        phrase: a phrase -> its words int [L]; for "referring". It may raise BadSample.
    """

    task: Task
    classes: Sequence[str]
    pixels: Pixels
    max_depth: float = MAX_DEPTH
    phrase: Callable[[str], np.ndarray] | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> dict[str, np.ndarray]:
        """`pixel_values` float32 [3, S, S] and `labels` [S, S]: int64 classes, IGNORED where none is known, or 1 for
        the thing and 0 for the rest; float32 depth, 0 where it is not known. With `input_ids` int64 [L] of the phrase,
        or `class_ids` int64 [] of the picture's class. Augmented only where `rng` is given.

        Raises:
            BadSample: the target is of another size than the picture, has a class that is not known, or is missing.
        """
        picture, target = sample.images[0].pil(), self._target(sample)
        if target.shape != (picture.height, picture.width):
            raise BadSample(
                f"the target is of {target.shape[1]} x {target.shape[0]} pixels and its picture of"
                f" {picture.width} x {picture.height}; bring the two to one size"
            )
        drawn = PIL.fromarray(target)
        if rng is not None and self.pixels.augment is not None:
            seed = int(rng.integers(2**31))  # one cut for the two
            picture, drawn = (
                self.pixels.augment(one, np.random.default_rng(seed)) for one in (picture, drawn)
            )  # fmt: skip
        labels = np.asarray(fit_square(drawn, self.pixels.size, self.pixels.fit, PIL.Resampling.NEAREST))
        kind = np.float32 if self.task == "depth" else np.int64
        return {"pixel_values": self.pixels.one(picture), "labels": labels.astype(kind), **self._beside(sample)}

    def _target(self, sample: Sample) -> np.ndarray:
        """Float32 or uint8 [H, W], as PIL takes them."""
        kind = "depth" if self.task == "depth" else "masks"
        found = next((one for one in sample.segments if isinstance(one, Dense) and one.kind == kind), None)
        if found is None:
            raise BadSample(f"there are no {kind}")
        if self.task == "depth":
            return (found.values * self.max_depth).astype(np.float32)
        if self.task == "referring":
            return np.asarray(found.values.any(axis=0), dtype=np.uint8)
        labels = np.full(found.values.shape[1:], IGNORED, dtype=np.uint8)
        for mask, name in zip(found.values, found.labels, strict=True):
            labels[mask] = self._place(name)
        return labels

    def _place(self, name: str) -> int:
        if name not in self.classes:
            raise BadSample(f"the class {name!r} is not one of the model's")
        return self.classes.index(name)

    def _beside(self, sample: Sample) -> dict[str, np.ndarray]:
        if self.task == "referring":
            assert self.phrase is not None
            return {"input_ids": self.phrase(sample.text)}
        if self.task == "depth":
            return {"class_ids": np.array(self._place(sample.text) if sample.text else 0, dtype=np.int64)}
        return {}
