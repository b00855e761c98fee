"""What studies of image encoders share: pictures kept in memory, and an arm that learns to name their class.

The arms of such a study see the same pictures in the same order and differ in the encoder or in what it learned before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import nn

from tessera.data.images import Pixels, fit_square
from tessera.data.labelled import ClassesWorld
from tessera.data.readers.classes import TASK
from tessera.data.sample import Image, Sample
from tessera.data.source import Source
from tessera.evaluate.classification import hits
from tessera.files import short_hash
from tessera.models.classifier import ImageClassifier
from tessera.study.design import Outcome
from tessera.study.training import trained
from tessera.train.classification import SMOOTHING, classification_stage, picture_loader
from tessera.train.engine import Stage, Trainer
from tessera.train.optim import Optimiser
from tessera.train.select import choose_precision

METRIC = "accuracy"

M = TypeVar("M", bound=nn.Module)


class Remembered:
    """A source of pictures that decodes each of them once, at the size that models read."""

    def __init__(self, source: Source, size: int) -> None:
        self.name, self.source, self.size = source.name, source, size
        self._known: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Sample:
        if index not in self._known:
            sample = self.source[index]
            first, *rest = sample.segments
            assert isinstance(first, Image)
            small = replace(first, source=fit_square(first.pil(), self.size))
            self._known[index] = replace(sample, segments=(small, *rest))
        return self._known[index]

    def fingerprint(self) -> str:
        """That of the source, which says all of what these pictures are."""
        return self.source.fingerprint()


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How long and how an arm learns."""

    steps: int
    batch: int = 64
    kind: Literal["adamw", "muon"] = "muon"
    lr: float = 1e-3
    smoothing: float = SMOOTHING


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets. `train_pictures` and `heldout_pictures` are of drawn shapes; other data are taken whole."""

    lesson: Lesson
    train_pictures: int
    heldout_pictures: int


@dataclass
class PictureBench:
    """Arms over one set of pictures; a paper adds the arms.

    Args:
        slug: of the result.
        world: pictures with their classes.
        budget: a dataclass of plain values.
        work: the folder of the study.
    """

    size: ClassVar[int]  # pixels a side that pictures are brought to

    slug: str
    world: ClassesWorld
    budget: Any
    work: Path

    @cached_property
    def train(self) -> Remembered:
        """Pictures to learn from, the same for all arms and seeds."""
        return Remembered(self.world.source(TASK), self.size)

    @cached_property
    def heldout(self) -> Remembered:
        """Pictures to be judged on."""
        return Remembered(self.world.source(TASK, "heldout"), self.size)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "pictures": self.world.name,
            "train": self.train.fingerprint(),
            "heldout": self.heldout.fingerprint(),
            "classes": len(self.world.classes),
            "budget": asdict(self.budget),
            "precision": choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")),
            **self.shared,
        }

    @property
    def shared(self) -> dict[str, Any]:
        """What a paper adds to `config`."""
        return {}


def learn(
    make: Callable[[], M], train: Source, pixels: Pixels, lesson: Lesson, *, seed: int, work: Path,
    trainable: Sequence[str] = ("*",),
) -> tuple[M, int, int]:  # fmt: skip
    """Train a classifier on pairs of a picture and the name of its class.

    Args:
        make: the classifier, a `NamesClasses`; it is called with PyTorch's generator seeded, so that new weights follow
            from `seed`.
        work: a folder in which a stopped training of the same lesson and seed is found again; it is deleted at the end.
        trainable: patterns of the parameters that learn.

    Returns:
        The classifier in evaluation mode, the steps taken and the pictures seen.
    """

    def stages() -> Iterator[Stage]:
        model: Any = make()
        loader = picture_loader(train, model.classes, pixels, lesson.batch, seed=seed)
        yield classification_stage(
            model, loader, lesson.steps, optimiser=Optimiser(kind=lesson.kind, lr=lesson.lr),
            smoothing=lesson.smoothing, trainable=trainable,
        )  # fmt: skip

    trainer = Trainer(work, config=asdict(lesson), seed=seed, resume=True)
    with trained(trainer, stages(), lesson.steps) as run:
        return run.model.eval(), run.steps, run.samples


def judge(
    make: Callable[[], ImageClassifier], train: Source, heldout: Source, pixels: Pixels, lesson: Lesson, *,
    key: Any, seed: int, work: Path,
) -> Outcome:  # fmt: skip
    """The outcome of an arm: trained on `train`, accuracy on each picture of `heldout`.

    Args:
        key: what sets this arm and its study apart, as JSON: names its folder in `work`.
    """
    folder = work / "training" / f"{short_hash([key, asdict(lesson)])}-seed-{seed}"
    model, steps, samples = learn(make, train, pixels, lesson, seed=seed, work=folder)
    right = hits(model, heldout, replace(pixels, augment=None)).tolist()
    return Outcome(items={METRIC: right}, steps=steps, samples=samples)
