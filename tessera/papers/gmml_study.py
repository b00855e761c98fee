"""The study of GMML: classes from 20 labels each, of an encoder that restored pictures before and of one that did not.

All arms are one small ViT of 8 x 8 tokens and take as many steps over as many pictures:

    grouped    restores groups of 1 to 4 tokens a side, in pictures whose classes nobody tells; then learns the classes
    isolated   the same with single tokens, up to the same area
    scratch    learns the classes from the first step

The study of the light is of drawn shapes seen from near, which every machine can draw; the same arms learn the groups
of emoji (`--study emoji`), handwritten digits (`--study digits`) and the characters of Omniglot, of which there are 16
each to learn from (`--study omniglot --data FOLDER`). `--study area` hides 10 to 90 %.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.few import Few
from tessera.data.images import Augment, Pixels
from tessera.data.labelled import ClassesWorld
from tessera.errors import UserError
from tessera.evaluate.classification import hits
from tessera.evaluate.restoration import restoration_errors
from tessera.files import short_hash
from tessera.models.classifier import IMAGENET, ImageClassifier
from tessera.models.masked_image import MaskedImageModel
from tessera.objectives.group_masking import GroupMasking
from tessera.papers.pictures import CloseUps, further
from tessera.study.classifying import METRIC, Lesson, PictureBench, learn
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.train.engine import Stage, Trainer
from tessera.train.masked_images import masked_loader, restoring_stage
from tessera.train.optim import Optimiser
from tessera.vision.registry import create

SLUG = "gmml"
SIZE, TOKEN = 32, 4  # pixels a side
MODEL: dict[str, Any] = {  # narrow, so that there is time for the many steps that restoring needs
    "image_size": SIZE, "patch_size": TOKEN, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4
}  # fmt: skip
BLOCKS = (-4, -3, -2, -1)
RESTORED = "error where hidden"
GROUPED = GroupMasking(block=0.5, align=TOKEN)  # a picture is 8 tokens wide, not 14: longer groups, in shares of it
ISOLATED = replace(GROUPED, block=0.0)
ARMS: dict[str, GroupMasking | None] = {"grouped": GROUPED, "isolated": ISOLATED, "scratch": None}
CLAIMS = (
    Claim(
        name="restoring first beats scratch", metric=METRIC, arm="grouped", against="scratch", expect="higher",
        published="better than supervised pre-training (page 1); the tables were not at hand",
    ),
    Claim(
        name="groups beat isolated tokens", metric=METRIC, arm="grouped", against="isolated", expect="higher",
        published="why groups are masked; the ablation was not at hand",
    ),
    Claim(
        name="groups are harder to restore", metric=RESTORED, arm="grouped", against="isolated", expect="higher",
        published="no figure; isolated tokens can be copied from their neighbours",
    ),
)  # fmt: skip
SHARES = (0.1, 0.3, 0.6, 0.9)
AREAS = {f"{share:.0%}": replace(GROUPED, least=share, most=share, replace=0.0) for share in SHARES}
AREA_CLAIMS = tuple(
    Claim(
        name=f"60% beats {other}", metric=METRIC, arm="60%", against=other, expect="higher",
        published="50 to 70 % is best (a review of the sibling work SiT); no figure",
    )
    for other in AREAS if other != "60%"
)  # fmt: skip
NOTES = (
    "Pictures to restore have no labels; the few with labels are drawn anew with every seed, and are the same for all"
    " arms.",
    f"{RESTORED}: mean absolute difference, in normalised values, of held-out pictures of which half is noise, hidden"
    " as the arm learned it.",
    "All arms read the mean of the tokens, as no loss of restoring is on the class token.",
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets: ten to fifteen minutes for all arms of three seeds on two cores.

    `train_pictures` and `heldout_pictures` are of drawn shapes; other data are taken whole.
    """

    restoring: int = 800
    classes: Lesson = Lesson(steps=150, batch=64)
    labels: int = 20
    train_pictures: int = 8000
    heldout_pictures: int = 1000


BUDGET = Budget()


@dataclass
class Bench(PictureBench):
    """Arms over one set of pictures.

    Args:
        arms: what is hidden before the classes are learned; None for nothing.
        claims: of those arms.
    """

    size = SIZE
    arms: Mapping[str, GroupMasking | None] = field(default_factory=lambda: ARMS)
    claims: tuple[Claim, ...] = CLAIMS

    @property
    def shared(self) -> dict[str, Any]:
        """What this study adds to `config`."""
        return {"model": MODEL, "blocks": list(BLOCKS)}

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Restored where the arm does, then classes, then judged."""
        folder = self.work / "training" / f"{short_hash([arm, self.settings(arm), self.config])}-seed-{seed}"
        lesson, masking = self.budget.classes, self.arms[arm]
        few = Few(self.train, self.world.classes, self.budget.labels, seed)
        if masking is None:  # as many steps in all
            lesson = replace(lesson, steps=lesson.steps + self.budget.restoring)
            restored = None
        else:
            restored = self.restore(masking, seed, folder / "restoring")

        def make() -> ImageClassifier:
            backbone = create("vit-mini", **MODEL) if restored is None else restored.backbone
            return ImageClassifier.over(backbone, self.world.classes, reads="tokens")

        items: dict[str, np.ndarray] = {}
        if restored is not None and masking is not None:
            half = replace(masking, least=0.5, most=0.5, replace=0.0)
            items[RESTORED] = restoration_errors(restored.eval(), self.heldout, Pixels(SIZE, **IMAGENET), half)
        pixels = Pixels(SIZE, **IMAGENET, augment=Augment(crop=0.8))
        model, steps, samples = learn(make, few, pixels, lesson, seed=seed, work=folder / "classes")
        shutil.rmtree(folder)
        items[METRIC] = hits(model, self.heldout, replace(pixels, augment=None))
        if restored is not None:
            steps, samples = steps + self.budget.restoring, samples + self.budget.restoring * lesson.batch
        return Outcome(items=items, steps=steps, samples=samples)  # type: ignore[arg-type]

    def restore(self, masking: GroupMasking, seed: int, work: Path) -> MaskedImageModel:
        """An encoder that has learned to restore the training pictures; one that was stopped goes on."""
        made: list[MaskedImageModel] = []
        steps, lesson = self.budget.restoring, self.budget.classes
        pixels = Pixels(SIZE, **IMAGENET, augment=Augment(crop=0.8))

        def stages() -> Iterator[Stage]:
            made.append(MaskedImageModel.over(create("vit-mini", **MODEL), blocks=BLOCKS))
            loader = masked_loader(self.train, pixels, masking, lesson.batch, seed=seed)
            yield restoring_stage(made[0], loader, steps, optimiser=Optimiser(kind=lesson.kind, lr=lesson.lr))

        Trainer(work, config={"masking": asdict(masking)}, seed=seed, resume=True).run(stages(), steps)
        return made[0]

    def settings(self, arm: str) -> dict[str, Any]:
        """What sets an arm apart, as JSON."""
        masking = self.arms[arm]
        return {"restores": None if masking is None else asdict(masking)}

    def study(self) -> Study:
        """All arms and claims."""
        arms = [Arm(name=name, run=partial(self.outcome, name), config=self.settings(name)) for name in self.arms]
        return Study(
            slug=self.slug, title=f"restoring hidden groups before {self.budget.labels} labels a class"
            f" ({self.world.name})", arms=arms, claims=self.claims, config=self.config,
            tuning="no arm was tuned: steps and rate were set before the first run", notes=NOTES,
        )  # fmt: skip


def _shapes(budget: Budget) -> ClassesWorld:
    # Whole scenes at this size left every arm at chance: their objects are a few tokens each.
    return CloseUps(budget.train_pictures, budget.heldout_pictures, SIZE)


def headline(work: Path = WORK / SLUG, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn shapes."""
    return Bench(SLUG, _shapes(budget), budget, work).study()


def area(work: Path, budget: Budget = BUDGET) -> Study:
    """How much of a picture to hide, on drawn shapes, with noise alone."""
    return Bench(f"{SLUG}-area", _shapes(budget), budget, work, AREAS, AREA_CLAIMS).study()


def _area(*, data: Path | None, model: Path | None) -> Study:
    if data is not None or model is not None:
        raise UserError("the study area draws its own pictures and trains its own models; leave out --data and --model")
    return area(WORK / f"{SLUG}-area")


def _further(slug: str, world: ClassesWorld, work: Path) -> Study:
    return Bench(slug, world, BUDGET, work).study()


FURTHER = {"area": _area, **further(SLUG, _further)}
