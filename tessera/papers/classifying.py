"""Learning the classes of pictures, as every paper of an image encoder does it: the recipe and the command's training.

    @dataclass(frozen=True, kw_only=True)
    class Recipe(ClassRecipe):
        model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: CvTConfig})

    RECIPES = {"mini": Recipe(backbone="cvt-mini", steps=800, batch=64, ...), "published": Recipe(...)}

    def train(self, options):
        return train_classifier(self, options, RECIPES[options.size], load_published)

Arms of studies are in `tessera.study.classifying`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from tessera.classifier import Classifier
from tessera.data.images import Augment
from tessera.data.labelled import ClassesWorld, open_labelled
from tessera.data.readers.classes import TASK
from tessera.errors import UserError
from tessera.evaluate.classification import hits
from tessera.evaluate.intervals import exact_binomial
from tessera.models.classifier import ImageClassifier
from tessera.objectives.classification import Mixing
from tessera.papers.registry import Paper, TrainOptions
from tessera.papers.settings import change, check_roles
from tessera.train.classification import SMOOTHING, classification_stage, picture_loader
from tessera.train.engine import Trainer
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.vision.base import VisionBackbone
from tessera.vision.registry import create

WORLD = "emoji"  # pictures that people drew, in classes that people made; every computer has them
PART = "backbone"


R = TypeVar("R", bound="ClassRecipe")


@dataclass(frozen=True, kw_only=True)
class ClassRecipe:
    """How a classifier is trained.

    Args:
        backbone: a name of `tessera.vision.registry`.
        model: fields of its configuration that differ; a paper names the class in the metadata, so that they can be
            set from the command line.
        batch: pictures of one update, of all processes together.
        accumulate: parts that a batch is read in, one after the other.
        average: decay of the running mean of the weights, which becomes the result; 0 for none.
    """

    backbone: str
    model: Mapping[str, Any] = field(default_factory=dict)
    steps: int
    batch: int
    accumulate: int = 1
    optimiser: Optimiser = Optimiser()
    augment: Augment = Augment()
    mixing: Mixing = Mixing()
    smoothing: float = SMOOTHING
    average: float = 0.0

    @property
    def part(self) -> int:
        """Pictures that are read at once, by all processes together."""
        if self.accumulate < 1 or self.batch % self.accumulate:
            raise UserError(f"a batch of {self.batch} does not divide into {self.accumulate} parts; change one of them")
        return self.batch // self.accumulate

    def stage(self, model: ImageClassifier, world: ClassesWorld, **places: int) -> Stage:
        """The stage that trains `model` on the training pictures of `world`.

        Args:
            places: `seed`, `rank`, `world_size` and `workers` of the loader.
        """
        pixels = replace(Classifier(model).pixels, augment=self.augment)
        loader = picture_loader(world.source(TASK), model.config.classes, pixels, self.part, **places)
        return classification_stage(
            model, loader, self.steps, optimiser=self.optimiser, smoothing=self.smoothing, mixing=self.mixing,
            accumulate=self.accumulate, average=self.average or None,
        )  # fmt: skip


def train_classifier(
    paper: Paper, options: TrainOptions, recipe: ClassRecipe,
    published: Callable[[Path], VisionBackbone] | None = None,
) -> Path:  # fmt: skip
    """Learn the classes of the pictures that `options` name and write the classifier to `options.out`/model.

    `--parts backbone=FOLDER` starts from trained weights: a published encoder, or what self-supervised pre-training
    left. A file is read by `published`, the paper's own reader of official weights.
    """
    recipe = asked(recipe, options)
    trainer, model, world = learned(paper, options, recipe, starting_backbone(recipe, options, published))
    return finish(trainer, model, world, options.out / "model")


def asked(recipe: R, options: TrainOptions) -> R:
    """The recipe with the steps and settings that `options` ask for."""
    return change(replace(recipe, steps=options.steps or recipe.steps), options.settings)


def learned(
    paper: Paper, options: TrainOptions, recipe: ClassRecipe, start: Callable[[], VisionBackbone]
) -> tuple[Trainer, ImageClassifier, ClassesWorld]:
    """The classifier that `train_classifier` writes, with the engine that trained it and the pictures."""
    world = open_pictures(options.data)
    trainer = paper.trainer(options, recipe)
    made: list[ImageClassifier] = []
    places = {
        "seed": options.seed,
        "rank": trainer.rank,
        "world_size": trainer.world,
        "workers": options.reading_threads,
    }

    def stages() -> Iterator[Stage]:
        made.append(ImageClassifier.over(start(), world.classes))  # here the engine has seeded the generators
        yield recipe.stage(made[0], world, **places)

    trainer.run(stages(), recipe.steps)
    return trainer, made[0], world


def finish(trainer: Trainer, model: ImageClassifier, world: ClassesWorld, folder: Path) -> Path:
    """Write what was trained to `folder`, and say how many held-out pictures it names rightly."""
    if trainer.main:
        trained = Classifier(model.eval())
        trained.save(folder)
        trainer.reporter.note(judged(trained, world))
    return folder


def open_pictures(data: Sequence[str]) -> ClassesWorld:
    """The pictures with classes that `tessera train --data` names; the emoji by group where it names none.

    Raises:
        UserError: more than one set: their classes have nothing in common.
    """
    if len(data) > 1:
        raise UserError(f"one set of classes is learned at a time, not {len(data)}: {', '.join(data)}")
    return open_labelled(data[0] if data else WORLD)


def starting_backbone(
    recipe: ClassRecipe, options: TrainOptions, published: Callable[[Path], VisionBackbone] | None
) -> Callable[[], VisionBackbone]:
    """What makes the backbone: new by the recipe, or that of `--parts`, which is as it is.

    Raises:
        UserError: there can be no such backbone.
        CheckpointError: `--parts` names what is no trained image encoder.
    """
    check_roles(options.parts, [PART])
    if PART not in options.parts:
        with torch.device("meta"):
            create(recipe.backbone, **recipe.model)
        return lambda: create(recipe.backbone, **recipe.model)
    for name in options.settings:
        if name.partition(".")[0] in (PART, "model"):
            raise UserError(f"the backbone {options.parts[PART]} is as it is; {name} cannot be set")
    file = Path(options.parts[PART])
    trained = published(file) if published is not None and file.is_file() else create(str(file))
    return lambda: trained


def judged(trained: Classifier, world: ClassesWorld) -> str:
    """A sentence: how many held-out pictures it names rightly."""
    right = hits(trained.model, world.source(TASK, "heldout"), trained.pixels)
    share = exact_binomial(int(right.sum()), len(right))
    span = f"95 % interval {share.low:.1%} to {share.high:.1%}"
    return f"held out: {share.value:.1%} of {share.n} pictures right ({span})"
