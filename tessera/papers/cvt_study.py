"""The study of CvT: what position embeddings are worth, at the size of the training pictures and at a larger one.

Four classifiers learn the same pictures, brought to 32 x 32 pixels, in the same order, and are judged at 32 and at 48
pixels, a size that none of them has seen:

    cvt                     two stages, 8 x 8 tokens in the last, no position embeddings
    cvt with positions      the same with a learned table before the blocks of both stages
    vit with positions      a plain ViT with 8 x 8 tokens and a learned table
    vit without positions   the same without

A table is interpolated for the larger grid. The study of the light is of drawn shapes seen from near, which every
machine can draw; the same arms learn the groups of emoji (`--study emoji`), handwritten digits (`--study digits`) and
the characters that people drew for Omniglot (`--study omniglot --data FOLDER`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from tessera.data.images import Pixels
from tessera.data.labelled import ClassesWorld
from tessera.data.readers.classes import TASK
from tessera.evaluate.classification import hits
from tessera.files import short_hash
from tessera.models.classifier import ImageClassifier
from tessera.papers.pictures import CloseUps, further
from tessera.study.classifying import METRIC, Budget, Lesson, PictureBench, Remembered, learn
from tessera.study.counting import count
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
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


# Ten minutes for all arms of three seeds on two cores.
BUDGET = Budget(lesson=Lesson(steps=300, batch=32), train_pictures=6000, heldout_pictures=1000)


@dataclass
class Bench(PictureBench):
    """The arms over one set of pictures."""

    size = TRAINED

    @cached_property
    def larger(self) -> Remembered:
        """The held-out pictures at a size that no arm has seen."""
        return Remembered(self.world.source(TASK, "heldout"), LARGER)

    @property
    def shared(self) -> dict[str, Any]:
        """What this study adds to `config`."""
        return {"pixels": [TRAINED, LARGER]}

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
        judged = {METRIC: self.heldout, AT_LARGER: self.larger}
        items = {name: hits(model, source, pixels(source.size)) for name, source in judged.items()}
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
