"""The study of token reduction without training: how far a trained classifier's answers move when it sees fewer tokens.

One small ViT a seed learns the pictures; all arms are that model, with a token reducer between the attention and the
MLP of three of its blocks, and nothing is trained again:

    full       as it was trained
    random     tokens dropped at random places
    prune      the tokens that the class token attends to most
    evit       those, and one mean of all others
    tome       pairs merged by bipartite matching
    nearest    tokens merged into the nearest of centres far from each other
    row        many to many: every output reads from all tokens
    column     many to many: every token spreads over the outputs, so that none is lost

A linear head is fitted once on the tokens of the whole ViT, to name the class of each pixel, and then reads tokens that
were put back on the grid: each position reads the outputs that its token went into ("row" cannot say which), and where
the token was dropped the nearest that was kept. Of the tokens themselves it is measured how much of them no linear map
makes of what is left, in the first block that reduces, at small keeps too.

The study of the light is of drawn shapes seen from near, which every machine can draw; the same arms learn the groups
of emoji (`--study emoji`), digits (`--study digits`) and the characters of Omniglot (`--study omniglot --data FOLDER`),
where no pixels are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.classifier import Classifier
from tessera.classifier import load as load_classifier
from tessera.data.images import Pixels
from tessera.data.labelled import ClassesWorld
from tessera.evaluate.dense import overlap
from tessera.evaluate.pixel_probe import PixelHead
from tessera.files import short_hash
from tessera.models.classifier import ImageClassifier
from tessera.papers.pictures import DENSE, CloseUps, further
from tessera.papers.token_transforming_measures import Seen, lost, meetings, see, with_labels
from tessera.reduce.registry import REDUCERS
from tessera.reduce.registry import create as create_reducer
from tessera.study.classifying import METRIC, Budget, Lesson, PictureBench, learn
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.study.sharing import prepared
from tessera.vision.registry import create

SLUG = "token-transforming"
SIZE = 32
MODEL: dict[str, Any] = {"num_hidden_layers": 8, "initializer_range": 0.1}  # a quarter of 8 blocks is a whole number
KEEPS = (0.5, 0.6, 0.7)  # of the tokens, three times
# Sizes enter the attention where tokens are merged, but for EViT, which has no such thing.
ARMS: dict[str, dict[str, Any] | None] = {
    "full": None,
    "random": {"reducer": "random"},
    "prune": {"reducer": "prune"},
    "evit": {"reducer": "evit", "proportional": False},
    "tome": {"reducer": "tome"},
    "nearest": {"reducer": "nearest"},
    "row": {"reducer": "row"},
    "column": {"reducer": "column"},
}
HALF = 0.5  # that ToMe leaves at least, in one step
SMALL_KEEPS = (0.125, 0.25, 0.5)  # of the tokens, once
MEAN_KL = "KL, mean of all keeps"
IOU = "IoU of a picture, mean of all keeps"
CHANGED = "pixels changed, mean of all keeps"


def kl_at(keep: float) -> str:
    """The metric's name."""
    return f"KL at keep {keep:g}"


def accuracy_at(keep: float) -> str:
    """The metric's name."""
    return f"{METRIC} at keep {keep:g}"


def iou_at(keep: float) -> str:
    """The metric's name."""
    return f"IoU of a picture at keep {keep:g}"


def changed_at(keep: float) -> str:
    """The metric's name."""
    return f"pixels changed at keep {keep:g}"


def lost_at(keep: float) -> str:
    """The metric's name."""
    return f"tokens lost at keep {keep:g}, once"


CLAIMS = (
    *(
        Claim(
            name=f"column loses less than {other} at keep {keep:g}", metric=kl_at(keep), arm="column", against=other,
            expect="lower", margin=0.1, relative=True,
            published="no table was at hand; many-to-many reserves the most information (abstract)",
        )
        for keep in KEEPS for other in ("prune", "evit")
    ),
    Claim(
        name="column is comparable with tome", metric=MEAN_KL, arm="column", against="tome", expect="not higher",
        margin=0.25, relative=True, published="no table was at hand; better than exclusive merging (abstract)",
    ),
    Claim(
        name="column is better than tome at a mild ratio", metric=kl_at(max(KEEPS)), arm="column", against="tome",
        expect="lower", published="no table was at hand; better than exclusive merging (abstract)",
    ),
    *(
        Claim(
            name=f"column loses less of the tokens than prune at keep {keep:g}, once", metric=lost_at(keep),
            arm="column", against="prune", expect="lower", published="reserves the most information (abstract)",
        )
        for keep in SMALL_KEEPS if keep < min(KEEPS)
    ),
)  # fmt: skip
PIXEL_CLAIMS = (
    *(
        Claim(
            name=f"column changes fewer pixels than prune at keep {keep:g}", metric=changed_at(keep), arm="column",
            against="prune", expect="lower", margin=0.1, relative=True, published="gains in segmentation (abstract)",
        )
        for keep in KEEPS
    ),
    Claim(
        name="column segments better than prune", metric=IOU, arm="column", against="prune", expect="higher",
        published="gains in segmentation (abstract)",
    ),
    Claim(
        name="column changes pixels comparably with tome", metric=CHANGED, arm="column", against="tome",
        expect="not higher", margin=0.25, relative=True, published="gains in segmentation (abstract)",
    ),
)  # fmt: skip
NOTES = (
    "KL is KL(full || reduced) of the classes' probabilities, in nats, mean over the held-out pictures.",
    "Keep is the share of tokens left at each of blocks 2, 4 and 6 of 8, counted from 0: 64 tokens become 8, 15 or 23.",
    "The arms train nothing: one trained classifier a seed serves them all.",
    "How the many-to-many matrix is made is this library's choice: no code of the paper was published.",
    "ToMe's paper merges a few tokens in every block; here all arms reduce in the same three.",
    "Tokens lost is |X - A Y|^2 / |X|^2 of a picture's tokens X and what is left of them, Y, with the best A, in block"
    " 2; ToMe, which leaves at least half in one step, is measured at 0.5 alone.",
)
PIXEL_NOTES = (
    "Pixels are of 6 shapes and the background. A linear head reads them from the tokens of the whole ViT, is fitted"
    " once a seed, and then judged on tokens put back on the grid; row has no way back.",
    "Pixels changed is their share that gets another class than from the whole ViT; IoU is with what was drawn, mean"
    " over the classes in the picture or predicted there.",
    "A dropped position reads the nearest kept token on the grid: a head that has only seen tokens makes nothing of"
    " zeros.",
)

# About ten minutes for three seeds on a core, most of it the three trainings.
BUDGET = Budget(lesson=Lesson(steps=600, batch=32), train_pictures=6000, heldout_pictures=1000)
PROBED = 1000  # training pictures that the head for pixels is fitted on


@dataclass(frozen=True)
class Whole:
    """The classifier of a seed with all tokens: what it sees in the held-out pictures, and for pictures with classes of
    pixels its head for these, and what that says of them."""

    model: ImageClassifier
    seen: Seen
    head: PixelHead | None = None
    pixels: Tensor | None = None


@dataclass
class Bench(PictureBench):
    """The arms over one set of pictures."""

    size = SIZE
    _known: dict[int, Whole] = field(default_factory=dict, init=False)

    @property
    def shared(self) -> dict[str, Any]:
        """What this study adds to `config`."""
        return {"model": MODEL, "keeps": list(KEEPS), "small keeps": list(SMALL_KEEPS), "probed": PROBED}

    @property
    def pixel_classes(self) -> tuple[str, ...]:
        """Those of pixels; none where the world names none."""
        return self.world.pixel_classes if isinstance(self.world, CloseUps) else ()

    @cached_property
    def pictures(self) -> Tensor:
        """The held-out pictures, float32 [n, 3, SIZE, SIZE]."""
        shown = (self.heldout[place].images[0].pil() for place in range(len(self.heldout)))
        return torch.from_numpy(np.stack([PIXELS.one(picture) for picture in shown]))

    @cached_property
    def labels(self) -> Tensor:
        """The classes of their pixels, int64 [n, SIZE, SIZE]."""
        return with_labels(self.world.source(DENSE, "heldout"), self.pixel_classes, PIXELS)[1]

    def trained(self, seed: int) -> Whole:
        """The classifier of a seed, from its folder where an earlier run left it."""
        if seed not in self._known:
            key = short_hash(self.config)
            kept = self.work / "models" / f"{key}-seed-{seed}"

            def write() -> None:
                folder = self.work / "training" / f"{key}-seed-{seed}"
                model, _, _ = learn(self.model, self.train, PIXELS, self.budget.lesson, seed=seed, work=folder)
                Classifier(model).save(kept)

            prepared(self.work, kept, write)
            self._known = {seed: self.whole(load_classifier(kept).model)}  # the seeds come one after the other
        return self._known[seed]

    def whole(self, model: ImageClassifier) -> Whole:
        """What a classifier sees, with a head for pixels where they have classes."""
        seen = see(model, self.pictures)
        if not self.pixel_classes:
            return Whole(model, seen)
        source = self.world.source(DENSE)
        pictures, labels = with_labels(source, self.pixel_classes, PIXELS, PROBED)
        head = PixelHead.fitted(see(model, pictures).tokens, labels, len(self.pixel_classes))
        return Whole(model, seen, head, head(seen.tokens))

    def model(self) -> ImageClassifier:
        """A classifier with new weights."""
        backbone = create("vit-mini", **MODEL)
        return ImageClassifier.over(backbone, self.world.classes, image_mean=PIXELS.mean, image_std=PIXELS.std)

    def right(self, logits: Tensor) -> list[float]:
        """1.0 for each held-out picture whose likeliest class is its own, else 0.0."""
        names = [self.world.classes[place] for place in logits.argmax(-1).tolist()]
        return [float(name == self.heldout[place].text) for place, name in enumerate(names)]

    def overlaps(self, found: Tensor) -> list[float]:
        """The IoU of each held-out picture with classes of its pixels int64 [n, SIZE, SIZE]."""
        return overlap(found.numpy(), self.labels.numpy(), len(self.pixel_classes)).by_picture().tolist()

    def outcome(self, arm: str, seed: int) -> Outcome:
        """The seed's classifier with the arm's reducer, judged at every keep."""
        whole, fields = self.trained(seed), ARMS[arm]
        if fields is None:
            items = {METRIC: self.right(whole.seen.logits)}
            if whole.pixels is not None:
                items[IOU] = self.overlaps(whole.pixels)
            return Outcome(items=items, steps=0, samples=0)
        if arm == "random":
            fields = {**fields, "reducer_options": {"seed": seed}}
        items = {}
        for keep in KEEPS:
            items |= self.judged(whole, keep, fields)
        for mean, name in ((MEAN_KL, kl_at), (IOU, iou_at), (CHANGED, changed_at)):
            if name(KEEPS[0]) in items:
                items[mean] = np.mean([items[name(keep)] for keep in KEEPS], axis=0).tolist()
        reducer = create_reducer(fields["reducer"], **fields.get("reducer_options", {}))
        met = list(meetings(whole.model, self.pictures))
        for keep in SMALL_KEEPS:
            if arm != "tome" or keep >= HALF:
                items[lost_at(keep)] = torch.cat([lost(reducer, keep, one) for one in met]).tolist()
        return Outcome(items=items, steps=0, samples=0)

    def judged(self, whole: Whole, keep: float, fields: Mapping[str, Any]) -> dict[str, list[float]]:
        """What fewer tokens change at one keep."""
        back = whole.head is not None and REDUCERS[fields["reducer"]].expands
        seen = see(whole.model.reduced(keep=keep, unreduce=back, **fields), self.pictures)
        items = {
            kl_at(keep): divergence(whole.seen.logits, seen.logits).tolist(),
            accuracy_at(keep): self.right(seen.logits),
        }
        if back and whole.head is not None and whole.pixels is not None:
            pixels = whole.head(seen.tokens)
            items[iou_at(keep)] = self.overlaps(pixels)
            items[changed_at(keep)] = (pixels != whole.pixels).double().mean((1, 2)).tolist()
        return items

    def study(self) -> Study:
        """All arms and claims."""
        arms = [Arm(name=name, run=partial(self.outcome, name), config=fields or {}) for name, fields in ARMS.items()]
        return Study(
            slug=self.slug, title=f"fewer tokens without training ({self.world.name})", arms=arms,
            claims=(*CLAIMS, *(PIXEL_CLAIMS if self.pixel_classes else ())), config=self.config,
            notes=(*NOTES, *(PIXEL_NOTES if self.pixel_classes else ())),
            tuning="no arm was tuned: temperature, centres and blocks were set before the first run",
        )  # fmt: skip


PIXELS = Pixels(SIZE, (0.5,) * 3, (0.5,) * 3)


def divergence(full: Tensor, reduced: Tensor) -> Tensor:
    """KL(full || reduced) in nats [n] of two sets of logits [n, K]; at least 0, as it is without rounding."""
    sure, other = full.double().log_softmax(-1), reduced.double().log_softmax(-1)
    return (sure.exp() * (sure - other)).sum(-1).clamp_min(0)


def headline(work: Path = WORK / SLUG, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, on drawn shapes."""
    return Bench(SLUG, CloseUps(budget.train_pictures, budget.heldout_pictures, SIZE), budget, work).study()


def _further(slug: str, world: ClassesWorld, work: Path) -> Study:
    return Bench(slug, world, BUDGET, work).study()


FURTHER = further(SLUG, _further)
