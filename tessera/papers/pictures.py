"""Pictures with classes that the studies of image encoders learn from: drawn shapes, emoji, digits, Omniglot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tessera.data.dense import DenseScenes, Task
from tessera.data.labelled import ClassesWorld, open_labelled
from tessera.data.readers.classes import TASK
from tessera.data.readers.digits import open_digits
from tessera.data.readers.omniglot import open_omniglot
from tessera.data.sample import Dense, Image, Sample, pair
from tessera.data.source import Source, Split
from tessera.data.worlds.scenes.graph import SHAPES, SIZE
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import UserError
from tessera.study.design import Study
from tessera.study.engine import WORK

DENSE: Task = "segmentation"
OFF = 5  # pixels that an object may lie off the middle of a close-up, each way


class Shapes:
    """Scenes of one object, by its shape, which every machine can draw. Held-out pictures are of colours and places in
    which training never showed that shape."""

    def __init__(self, train_pictures: int, heldout_pictures: int) -> None:
        self.name, self.classes = "scenes by shape", tuple(sorted(SHAPES))
        self.tasks: tuple[str, ...] = (TASK,)
        self.world = ScenesWorld(train_pictures=train_pictures, heldout_pictures=heldout_pictures, counts=(1.0,))

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one split; there is one task."""
        return _ShapesSource(f"{self.name}/{split}", self.world, split)


@dataclass
class _ShapesSource:
    name: str
    world: ScenesWorld
    split: Split

    def __len__(self) -> int:
        return self.world.pictures[self.split]

    def __getitem__(self, index: int, /) -> Sample:
        shape = self.world.scene(self.split, index).objects[0].shape
        return pair(self.world.image(self.split, index), shape, id=f"{self.name}/{index}")

    def fingerprint(self) -> str:
        return f"{self.world.source('pairs', self.split).fingerprint()}-shape"


class CloseUps(Shapes):
    """Drawn shapes from near: the `side` x `side` pixels around the object of a scene, which lies up to OFF pixels off
    their middle each way; with its class ("classes") or with the class of every pixel ("segmentation")."""

    def __init__(self, train_pictures: int, heldout_pictures: int, side: int) -> None:
        super().__init__(train_pictures, heldout_pictures)
        self.tasks = (TASK, DENSE)
        self.side, self.pixel_classes = side, DenseScenes(DENSE, self.world).classes

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one split, the same pictures for both tasks."""
        whole = self.world.source(DENSE, split) if task == DENSE else super().source(task, split)
        return _CloseUps(f"{self.name} from near/{split}", whole, self.world, split, self.side)


@dataclass
class _CloseUps:
    name: str
    whole: Source
    world: ScenesWorld
    split: Split
    side: int

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int, /) -> Sample:
        sample, thing, side = self.whole[index], self.world.scene(self.split, index).objects[0], self.side
        off = np.random.default_rng(index).integers(-OFF, OFF + 1, 2)
        left, top = (int(edge) for edge in np.clip(np.rint([thing.x, thing.y]) - side // 2 + off, 0, SIZE - side))
        near = sample.images[0].pil().crop((left, top, left + side, top + side))
        for target in sample.segments:
            if isinstance(target, Dense):
                masks = target.values[:, top : top + side, left : left + side]
                return replace(sample, segments=(Image(near, learned=False), replace(target, values=masks)))
        return pair(near, sample.text, id=sample.id)

    def fingerprint(self) -> str:
        return f"{self.whole.fingerprint()}-{self.side}-{OFF}"


def further(slug: str, study: Callable[[str, ClassesWorld, Path], Study]) -> Mapping[str, Callable[..., Study]]:
    """The same arms on real pictures, as `tessera reproduce SLUG --study NAME` calls them: "emoji", "digits" and
    "omniglot".

    Args:
        study: makes the study from the slug of its result, the pictures, and the folder that it works in.
    """

    def named(name: str, open_world: Callable[[Path | None], ClassesWorld]) -> Callable[..., Study]:
        def made(*, data: Path | None, model: Path | None) -> Study:
            if model is not None:
                raise UserError(f"the study {name} trains its own models; leave out --model")
            own = f"{slug}-{name}"
            return study(own, open_world(data), WORK / own)

        return made

    return {
        "emoji": named("emoji", _emoji),
        "digits": named("digits", _digits),
        "omniglot": named("omniglot", _omniglot),
    }


def _emoji(data: Path | None) -> ClassesWorld:
    if data is not None:
        raise UserError("the study emoji reads this machine's emoji font; leave out --data")
    return open_labelled("emoji")


def _digits(data: Path | None) -> ClassesWorld:
    if data is not None:
        raise UserError("the study digits reads the digits of scikit-learn; leave out --data")
    return open_digits()


def _omniglot(data: Path | None) -> ClassesWorld:
    if data is None:
        raise UserError("the study omniglot reads images_background*.zip; name their folder with --data FOLDER")
    return open_omniglot(data)
