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

The study of the light is of drawn shapes seen from near, which every machine can draw; the same arms learn the groups
of emoji (`--study emoji`), digits (`--study digits`) and the characters of Omniglot (`--study omniglot --data FOLDER`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.classifier import Classifier
from tessera.classifier import load as load_classifier
from tessera.data.images import Pixels
from tessera.data.labelled import ClassesWorld
from tessera.evaluate.classification import look
from tessera.files import short_hash
from tessera.models.classifier import ImageClassifier
from tessera.papers.pictures import CloseUps, further
from tessera.study.classifying import METRIC, Budget, Lesson, PictureBench, learn
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
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
MEAN_KL = "KL, mean of all keeps"


def kl_at(keep: float) -> str:
    """The metric's name."""
    return f"KL at keep {keep:g}"


def accuracy_at(keep: float) -> str:
    """The metric's name."""
    return f"{METRIC} at keep {keep:g}"


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
)  # fmt: skip
NOTES = (
    "KL is KL(full || reduced) of the classes' probabilities, in nats, mean over the held-out pictures.",
    "Keep is the share of tokens left at each of blocks 2, 4 and 6 of 8, counted from 0: 64 tokens become 8, 15 or 23.",
    "The arms train nothing: one trained classifier a seed serves them all.",
    "How the many-to-many matrix is made is this library's choice: no code of the paper was published.",
    "ToMe's paper merges a few tokens in every block; here all arms reduce in the same three.",
)

# Under ten minutes for three seeds on two cores, nearly all of it the three trainings.
BUDGET = Budget(lesson=Lesson(steps=600, batch=32), train_pictures=6000, heldout_pictures=1000)


@dataclass
class Bench(PictureBench):
    """The arms over one set of pictures."""

    size = SIZE
    _known: dict[int, tuple[ImageClassifier, Tensor]] = field(default_factory=dict, init=False)

    @property
    def shared(self) -> dict[str, Any]:
        """What this study adds to `config`."""
        return {"model": MODEL, "keeps": list(KEEPS)}

    def trained(self, seed: int) -> tuple[ImageClassifier, Tensor]:
        """The classifier of a seed, from its folder where an earlier run left it, and its logits [n, K] of the held-out
        pictures."""
        if seed not in self._known:
            key = short_hash(self.config)
            kept = self.work / "models" / f"{key}-seed-{seed}"
            if not kept.is_dir():
                folder = self.work / "training" / f"{key}-seed-{seed}"
                model, _, _ = learn(self.model, self.train, PIXELS, self.budget.lesson, seed=seed, work=folder)
                Classifier(model).save(kept)
            model = load_classifier(kept).model
            self._known[seed] = model, self.logits(model)
        return self._known[seed]

    def model(self) -> ImageClassifier:
        """A classifier with new weights."""
        backbone = create("vit-mini", **MODEL)
        return ImageClassifier.over(backbone, self.world.classes, image_mean=PIXELS.mean, image_std=PIXELS.std)

    def logits(self, model: ImageClassifier) -> Tensor:
        """Float [n, K] of the held-out pictures."""
        pictures = (self.heldout[place].images[0].pil() for place in range(len(self.heldout)))
        return torch.cat([out.logits.float().cpu() for out in look(model, pictures, PIXELS)])

    def right(self, logits: Tensor) -> list[float]:
        """1.0 for each held-out picture whose likeliest class is its own, else 0.0."""
        names = [self.world.classes[place] for place in logits.argmax(-1).tolist()]
        return [float(name == self.heldout[place].text) for place, name in enumerate(names)]

    def outcome(self, arm: str, seed: int) -> Outcome:
        """The seed's classifier with the arm's reducer, judged at every keep."""
        model, full = self.trained(seed)
        fields = ARMS[arm]
        if fields is None:
            return Outcome(items={METRIC: self.right(full)}, steps=0, samples=0)
        if arm == "random":
            fields = {**fields, "reducer_options": {"seed": seed}}
        items: dict[str, list[float]] = {}
        for keep in KEEPS:
            logits = self.logits(model.reduced(keep=keep, **fields))
            items[kl_at(keep)] = divergence(full, logits).tolist()
            items[accuracy_at(keep)] = self.right(logits)
        items[MEAN_KL] = np.mean([items[kl_at(keep)] for keep in KEEPS], axis=0).tolist()
        return Outcome(items=items, steps=0, samples=0)

    def study(self) -> Study:
        """All arms and claims."""
        arms = [Arm(name=name, run=partial(self.outcome, name), config=fields or {}) for name, fields in ARMS.items()]
        return Study(
            slug=self.slug, title=f"fewer tokens without training ({self.world.name})", arms=arms, claims=CLAIMS,
            config=self.config, notes=NOTES,
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
