"""The study of T2T-ViT: how a picture becomes tokens, and deep and narrow against wide and shallow.

All arms turn 32 x 32 pixels into 8 x 8 tokens and learn the classes of the same pictures in the same order:

    t2t               two soft splits with a token layer between them, then 8 blocks of width 96
    patches           the plain cut of a ViT, 4 x 4 pixels, before the same blocks
    convolution       convolutions of the soft splits' windows, before the same blocks
    wide and shallow  the T2T module before 2 blocks of width 192, with as many parameters

The study of the light is of drawn shapes seen from near, which every machine can draw; the same arms learn the groups
of emoji (`--study emoji`), handwritten digits (`--study digits`) and the characters that people drew for Omniglot
(`--study omniglot --data FOLDER`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tessera.data.images import Augment, Pixels
from tessera.data.labelled import ClassesWorld
from tessera.models.classifier import ImageClassifier
from tessera.papers.pictures import CloseUps, further
from tessera.study.classifying import METRIC, Budget, Lesson, PictureBench, judge
from tessera.study.counting import count
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.vision.registry import create

SLUG = "t2t-vit"
SIZE = 32
DEEP = {"hidden_size": 96, "num_hidden_layers": 8, "num_attention_heads": 2, "mlp_ratio": 2.0}
WIDE = {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2.0}
SPLITS = [[3, 2, 1], [3, 2, 1]]
ARMS: dict[str, dict[str, Any]] = {  # fields of T2TViTConfig beside those of t2t-vit-mini
    "t2t": {**DEEP, "splits": SPLITS},
    "patches": {**DEEP, "splits": [[4, 4, 0]]},
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


# A quarter of an hour for all arms of three seeds on two cores. Half of these steps left plain patches near chance.
BUDGET = Budget(lesson=Lesson(steps=560, batch=32), train_pictures=6000, heldout_pictures=1000)


@dataclass
class Bench(PictureBench):
    """The arms over one set of pictures; `augment` is of those to learn from."""

    size = SIZE
    augment: Augment | None = None

    @property
    def shared(self) -> dict[str, Any]:
        """What this study adds to `config`."""
        return {"augment": asdict(self.augment) if self.augment else None}

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
    shapes = CloseUps(budget.train_pictures, budget.heldout_pictures, SIZE)
    return Bench(SLUG, shapes, budget, work or WORK / SLUG).study()


def _on(slug: str, world: ClassesWorld, work: Path) -> Study:
    return Bench(slug, world, BUDGET, work, Augment(crop=0.85)).study()


FURTHER = further(SLUG, _on)
