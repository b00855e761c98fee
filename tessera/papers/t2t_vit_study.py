"""The study of T2T-ViT: how a picture becomes tokens, and deep and narrow against wide and shallow.

All arms turn 64 x 64 pixels into 8 x 8 tokens and learn the classes of the same pictures in the same order:

    t2t               two soft splits with a token layer between them, then 8 blocks of width 128
    patches           the plain cut of a ViT, 8 x 8 pixels, before the same blocks
    convolution       convolutions of the soft splits' windows, before the same blocks
    wide and shallow  the T2T module before 2 blocks of width 256, with as many parameters

The study of the light is of drawn shapes, which every machine can draw; the same arms learn the groups of emoji
(`--study emoji`) and the characters that people drew for Omniglot (`--study omniglot --data FOLDER`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from tessera.data.images import Augment, Pixels
from tessera.data.labelled import ClassesWorld, open_labelled
from tessera.data.readers.classes import TASK
from tessera.data.readers.omniglot import open_omniglot
from tessera.data.sample import Sample, pair
from tessera.data.source import Split
from tessera.data.worlds.scenes.graph import SHAPES
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import UserError
from tessera.models.classifier import ImageClassifier
from tessera.papers.registry import say
from tessera.study.classifying import METRIC, Lesson, Remembered, judge
from tessera.study.counting import count
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK, run
from tessera.train.select import choose_precision
from tessera.vision.registry import create

SIZE = 64
DEEP = {"hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 2, "mlp_ratio": 2.0}
WIDE = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2.0}
SPLITS = [[7, 4, 2], [3, 2, 1]]
ARMS: dict[str, dict[str, Any]] = {  # fields of T2TViTConfig beside those of t2t-vit-mini
    "t2t": {**DEEP, "splits": SPLITS},
    "patches": {**DEEP, "splits": [[8, 8, 0]]},
    "convolution": {**DEEP, "splits": SPLITS, "token_layer": "convolution"},
    "wide and shallow": {**WIDE, "splits": SPLITS},
}
CLAIMS = (
    Claim(
        name="soft splits beat plain patches", metric=METRIC, arm="t2t", against="patches", expect="higher",
        published="more than 3 points of ImageNet top-1 over a ViT of twice the size (abstract)",
    ),
    Claim(
        name="soft splits beat convolutions", metric=METRIC, arm="t2t", against="convolution", expect="higher",
        published="an ablation of the paper, whose table was not at hand; T2T-ViT-14 reaches 81.5",
    ),
    Claim(
        name="deep and narrow beats wide and shallow", metric=METRIC, arm="t2t", against="wide and shallow",
        expect="higher", published="said in the abstract; the ablation's table was not at hand",
    ),
)  # fmt: skip
NOTES = (
    "All arms have 64 tokens a picture, the same fixed positions and blocks of one design; their parameters are named.",
    "Convolutions have a GELU between them; the official code leaves open what stands there.",
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets: ten minutes for all arms of three seeds on two cores.

    `train_pictures` and `heldout_pictures` are of drawn shapes; other data are taken whole.
    """

    lesson: Lesson = Lesson(steps=360, batch=64)
    train_pictures: int = 8000
    heldout_pictures: int = 1000


BUDGET = Budget()


class Shapes:
    """Scenes of one object, by its shape. Held-out pictures are of colours and places in which training never showed
    that shape."""

    def __init__(self, budget: Budget) -> None:
        self.name, self.tasks, self.classes = "scenes", (TASK,), tuple(sorted(SHAPES))
        self.world = ScenesWorld(
            train_pictures=budget.train_pictures, heldout_pictures=budget.heldout_pictures, counts=(1.0,)
        )

    def source(self, task: str, split: Split = "train") -> _ShapesSource:
        """The samples of one split; there is one task."""
        return _ShapesSource(self.world, split)


@dataclass(frozen=True)
class _ShapesSource:
    world: ScenesWorld
    split: Split

    @property
    def name(self) -> str:
        return f"scenes by shape/{self.split}"

    def __len__(self) -> int:
        return self.world.pictures[self.split]

    def __getitem__(self, index: int, /) -> Sample:
        shape = self.world.scene(self.split, index).objects[0].shape
        return pair(self.world.image(self.split, index), shape, id=f"{self.name}/{index}")

    def fingerprint(self) -> str:
        return f"{self.world.source('pairs', self.split).fingerprint()}-shape"


@dataclass
class Bench:
    """The arms over one set of pictures.

    Args:
        slug: of the result.
        world: pictures with their classes.
        work: the folder of the study.
        augment: of training pictures.
    """

    slug: str
    world: ClassesWorld
    budget: Budget
    work: Path
    augment: Augment | None = None

    @cached_property
    def train(self) -> Remembered:
        """Pictures to learn from, the same for all arms and seeds."""
        return Remembered(self.world.source(TASK), SIZE)

    @cached_property
    def heldout(self) -> Remembered:
        """Pictures to be judged on."""
        return Remembered(self.world.source(TASK, "heldout"), SIZE)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "pictures": self.world.name,
            "train": self.train.fingerprint(),
            "heldout": self.heldout.fingerprint(),
            "classes": len(self.world.classes),
            "budget": asdict(self.budget),
            "augment": asdict(self.augment) if self.augment else None,
            "precision": choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        }

    def model(self, arm: str) -> ImageClassifier:
        """A classifier with new weights."""
        return ImageClassifier.over(create("t2t-vit-mini", image_size=SIZE, **ARMS[arm]), self.world.classes)

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Trained and judged."""
        pixels = Pixels(SIZE, (0.5,) * 3, (0.5,) * 3, self.augment)
        return judge(
            lambda: self.model(arm), self.train, self.heldout, pixels, self.budget.lesson,
            key=[arm, ARMS[arm], self.config], seed=seed, work=self.work,
        )  # fmt: skip

    def study(self) -> Study:
        """All arms and claims."""
        arms = []
        for name, fields in ARMS.items():
            with torch.device("meta"):
                parameters = count(self.model(name))["parameters"]
            arms.append(
                Arm(name=name, run=lambda seed, name=name: self.outcome(name, seed),  # type: ignore[misc]
                    config={**fields, "parameters": parameters})
            )  # fmt: skip
        return Study(
            slug=self.slug, title=f"how a picture becomes tokens; deep or wide ({self.world.name})", arms=arms,
            claims=CLAIMS, config=self.config, tuning="no arm was tuned: steps and rate were set before the first run",
            notes=NOTES,
        )  # fmt: skip


def headline(work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn shapes."""
    return Bench("t2t-vit", Shapes(budget), budget, work or WORK / "t2t-vit").study()


def _further(name: str, open_world: Callable[[Path | None], ClassesWorld]) -> Callable[..., dict[str, Any]]:
    """A study of the same arms on other pictures, as `tessera reproduce` calls it."""

    def reproduce(
        *, seeds: int, out: Path, data: Path | None, model: Path | None, budget: Budget = BUDGET,
        work: Path | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        if model is not None:
            raise UserError(f"the study {name} trains its own models; leave out --model")
        slug = f"t2t-vit-{name}"
        folder = work or WORK / slug
        bench = Bench(slug, open_world(data), budget, folder, Augment(crop=0.85))
        return run(bench.study(), seeds, out=out, work=folder, tell=say)

    return reproduce


def _emoji(data: Path | None) -> ClassesWorld:
    if data is not None:
        raise UserError("the study emoji reads this machine's emoji font; leave out --data")
    return open_labelled("emoji")


def _omniglot(data: Path | None) -> ClassesWorld:
    if data is None:
        raise UserError("the study omniglot reads images_background*.zip; name their folder with --data FOLDER")
    return open_omniglot(data)


FURTHER = {"emoji": _further("emoji", _emoji), "omniglot": _further("omniglot", _omniglot)}
