"""The study of CvT: what position embeddings are worth, at the size of the training pictures and at a larger one.

Four classifiers learn the same pictures, brought to 32 x 32 pixels, in the same order, and are judged at 32 and at 48
pixels, a size that none of them has seen:

    cvt                     two stages, 8 x 8 tokens in the last, no position embeddings
    cvt with positions      the same with a learned table before the blocks of both stages
    vit with positions      a plain ViT with 8 x 8 tokens and a learned table
    vit without positions   the same without

A table is interpolated for the larger grid. The study of the light is of drawn shapes seen from near, which every
machine can draw; the same arms learn the groups of emoji (`--study emoji`) and the characters that people drew for
Omniglot (`--study omniglot --data FOLDER`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from tessera.data.images import Pixels
from tessera.data.labelled import ClassesWorld
from tessera.data.readers.classes import TASK
from tessera.evaluate.classification import hits
from tessera.models.classifier import ImageClassifier
from tessera.papers.pictures import CloseUps, further
from tessera.study.classifying import METRIC, Lesson, Remembered, learn
from tessera.study.counting import count
from tessera.study.design import Arm, Claim, Outcome, Study, short_hash
from tessera.study.engine import WORK
from tessera.train.select import choose_precision
from tessera.vision.registry import create

SLUG = "cvt"
TRAINED, LARGER = 32, 48  # pixels a side
AT_LARGER = f"accuracy at {LARGER} pixels"
ARMS: dict[str, tuple[str, dict[str, Any]]] = {  # a backbone, and fields of its configuration
    "cvt": ("cvt-mini", {}),
    "cvt with positions": ("cvt-mini", {"position_stages": [0, 1]}),
    "vit with positions": ("vit-mini", {"initializer_range": 0.1}),  # as cvt-mini has it
    "vit without positions": ("vit-mini", {"initializer_range": 0.1, "positions": "none"}),
}
CLAIMS = (
    Claim(
        name="cvt does as well without positions", metric=METRIC, arm="cvt", against="cvt with positions",
        expect="within", margin=0.02, published="positional encoding can be safely removed (abstract)",
    ),
    Claim(
        name="a plain vit needs them", metric=METRIC, arm="vit with positions", against="vit without positions",
        expect="higher", published="a crucial component in existing vision transformers (abstract)",
    ),
    Claim(
        name="cvt beats a plain vit", metric=METRIC, arm="cvt", against="vit with positions", expect="higher",
        published="better than other vision transformers with fewer parameters and FLOPs (abstract)",
    ),
    Claim(
        name="cvt reads larger pictures better", metric=AT_LARGER, arm="cvt", against="vit with positions",
        expect="higher", published="no figure; simplifies the design for higher-resolution tasks (abstract)",
    ),
    Claim(
        name="positions do not help cvt with larger pictures", metric=AT_LARGER, arm="cvt with positions",
        against="cvt", expect="not higher", margin=0.02, published="no figure; as above",
    ),
)  # fmt: skip
NOTES = (
    f"All arms learn at {TRAINED} x {TRAINED} pixels alone; {LARGER} x {LARGER} are the same held-out pictures.",
    "Tables of positions are interpolated (bicubic) for the larger grid.",
    "CvT has fewer parameters than the ViT and takes fewer multiply-adds; both are named beside the arms.",
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets: ten minutes for all arms of three seeds on two cores.

    `train_pictures` and `heldout_pictures` are of drawn shapes; other data are taken whole.
    """

    lesson: Lesson = Lesson(steps=300, batch=32)
    train_pictures: int = 6000
    heldout_pictures: int = 1000


BUDGET = Budget()


@dataclass
class Bench:
    """The arms over one set of pictures.

    Args:
        slug: of the result.
        world: pictures with their classes.
        work: the folder of the study.
    """

    slug: str
    world: ClassesWorld
    budget: Budget
    work: Path

    @cached_property
    def train(self) -> Remembered:
        """Pictures to learn from, the same for all arms and seeds."""
        return Remembered(self.world.source(TASK), TRAINED)

    @cached_property
    def heldout(self) -> dict[str, Remembered]:
        """Pictures to be judged on, by metric."""
        source = self.world.source(TASK, "heldout")
        return {METRIC: Remembered(source, TRAINED), AT_LARGER: Remembered(source, LARGER)}

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "pictures": self.world.name,
            "train": self.train.fingerprint(),
            "heldout": self.heldout[METRIC].fingerprint(),
            "classes": len(self.world.classes),
            "pixels": [TRAINED, LARGER],
            "budget": asdict(self.budget),
            "precision": choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        }

    def model(self, arm: str) -> ImageClassifier:
        """A classifier with new weights."""
        name, fields = ARMS[arm]
        return ImageClassifier.over(create(name, image_size=TRAINED, **fields), self.world.classes)

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Trained at one size, judged at both."""
        folder = self.work / "training" / f"{short_hash([arm, ARMS[arm], self.config])}-seed-{seed}"
        model, steps, samples = learn(
            lambda: self.model(arm), self.train, pixels(TRAINED), self.budget.lesson, seed=seed, work=folder
        )
        items = {name: hits(model, source, pixels(source.size)) for name, source in self.heldout.items()}
        return Outcome(items=items, steps=steps, samples=samples)  # type: ignore[arg-type]

    def study(self) -> Study:
        """All arms and claims."""
        arms = []
        for name, (backbone, fields) in ARMS.items():
            with torch.device("meta"):
                picture = torch.empty(1, 3, TRAINED, TRAINED)
                size = count(self.model(name), {"pixel_values": picture})
            shown = {"parameters": size["parameters"], "mmacs": round(size["gmacs"] * 1e3, 1)}
            arms.append(
                Arm(name=name, run=partial(self.outcome, name), config={"backbone": backbone, **fields, **shown})
            )
        return Study(
            slug=self.slug, title=f"position embeddings, and pictures of another size ({self.world.name})", arms=arms,
            claims=CLAIMS, config=self.config, tuning="no arm was tuned: steps and rate were set before the first run",
            notes=NOTES,
        )  # fmt: skip


def pixels(side: int) -> Pixels:
    """How pictures enter at this size, in training and after."""
    return Pixels(side, (0.5,) * 3, (0.5,) * 3)


def headline(work: Path = WORK / SLUG, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn shapes."""
    return Bench(SLUG, CloseUps(budget.train_pictures, budget.heldout_pictures, LARGER), budget, work).study()


def _further(slug: str, world: ClassesWorld, work: Path) -> Study:
    return Bench(slug, world, BUDGET, work).study()


FURTHER = further(SLUG, _further)
