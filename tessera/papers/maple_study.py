"""The study of MaPLe: prompts learned from a few pictures of some classes, judged on classes that they never saw.

All arms put prompts into `mini/clip`, which stays as it is, and learn from the same 16 pictures a class in the same
order: drawn objects at dusk, a light in which CLIP was never trained and names few objects rightly. The light is the
same for all classes, so what undoes it can serve classes that were not learned.

    zero-shot   the plain CLIP; it learns nothing
    coop        16 prompts before the class name (CoOp)
    cocoop      4 prompts before the name and a function of the picture (CoCoOp)
    vpt         8 prompts behind the patches in every layer
    language    4 prompts before the name in every layer
    ivlp        2 and 2 prompts in every layer of both towers, learned by themselves
    maple       2 prompts in both towers, those of the vision tower functions of those of the text tower

Base classes are the first half in the order of names, novel ones the rest. Two further studies judge prompts for all
classes: on pictures with other names (`--study cross-data-set`), and on the same classes in lights that no prompt
learned (`--study domain-shift`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL
from PIL import ImageOps

from tessera.adapt.prompted_clip import LEARNED, PromptedCLIP
from tessera.adapt.prompts import METHODS, Sizes, prompts_of
from tessera.data.few import Few
from tessera.data.labelled import ClassesWorld
from tessera.data.readers.classes import TASK
from tessera.data.sample import Image, Sample, pair
from tessera.data.source import Source, Split
from tessera.data.worlds.scenes.graph import COLOURS, SHAPES, TEXTURES, SceneObject
from tessera.data.worlds.scenes.world import ScenesWorld
from tessera.errors import UserError, nearest
from tessera.evaluate.generalisation import Part, base_and_novel, harmonic_mean, transfer
from tessera.files import short_hash
from tessera.prompted import pixels_of, read_clip
from tessera.study.classifying import Lesson, learn
from tessera.study.design import Arm, Claim, Outcome, Study
from tessera.study.engine import WORK
from tessera.train.select import choose_precision

SLUG = "maple"
CLIP = "mini/clip"
SHOTS = 16
ARMS = tuple(method for method in METHODS if method != "maple-shared")
GAIN = "base gain"  # of a picture's being named rightly over what the plain CLIP says of it
KINDS: dict[str, tuple[tuple[str, ...], Callable[[SceneObject], str]]] = {
    "colour and shape": (
        tuple(sorted(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)),
        lambda thing: f"{thing.colour} {thing.shape}",
    ),
    "texture and shape": (
        tuple(sorted(f"{texture} {shape}" for texture in TEXTURES for shape in SHAPES)),
        lambda thing: f"{thing.texture} {thing.shape}",
    ),
    "colour": (tuple(sorted(COLOURS)), lambda thing: thing.colour),
}
STYLES: dict[str, Callable[[PIL.Image], PIL.Image]] = {
    "day": lambda picture: picture,
    "dusk": lambda picture: picture.point(lambda value: int(0.4 * value)),
    "poster": lambda picture: ImageOps.posterize(picture, 1),
    "near": lambda picture: picture.crop((12, 12, 52, 52)),
    "turned": lambda picture: picture.rotate(90),
}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm gets, and how many pictures there are to draw shots from and to be judged on."""

    lesson: Lesson
    train_pictures: int
    heldout_pictures: int


# Ten epochs of the 16 pictures of 24 classes.
BUDGET = Budget(
    lesson=Lesson(steps=240, batch=16, kind="adamw", lr=2e-3, smoothing=0.0), train_pictures=1600, heldout_pictures=800
)
CLAIMS = (
    Claim(
        name="prompts beat the plain CLIP on the classes that they learned", metric=GAIN, arm="maple", against=0.0,
        expect="higher", published="82.28 against 69.34, means of 11 data sets",
    ),
    Claim(
        name="MaPLe names novel classes better than CoOp", metric="novel", arm="maple", against="coop", expect="higher",
        published="75.14 against 63.22, means of 11 data sets",
    ),
    Claim(
        name="MaPLe's harmonic mean is above CoOp's", metric="harmonic mean", arm="maple", against="coop",
        expect="higher", published="78.55 against 71.66",
    ),
    Claim(
        name="coupled prompts beat independent ones", metric="harmonic mean", arm="maple", against="ivlp",
        expect="higher", published="78.55 against 77.90",
    ),
)  # fmt: skip
NOTES = (
    "Shots are drawn anew with each seed, the same for all arms; each half is judged among its own class names alone.",
    "The paper trains CoOp for 200 epochs and the others for 5 to 10; here all arms take the same steps.",
)


class Things:
    """Scenes of one object in a style, by what it is, such as "red circle". Held-out pictures are of colours and places
    in which training never showed that shape."""

    def __init__(self, kind: str, style: str, train_pictures: int, heldout_pictures: int) -> None:
        if style not in STYLES:
            raise UserError(f"there is no style {style!r}{nearest(style, STYLES)}")
        self.name = f"scenes by {kind}, {style}"
        self.tasks: tuple[str, ...] = (TASK,)
        self.classes, self.label = KINDS[kind]
        self.kind, self.style = kind, style
        self.world = ScenesWorld(train_pictures=train_pictures, heldout_pictures=heldout_pictures, counts=(1.0,))
        self._drawn: dict[tuple[Split, int], PIL.Image] = {}

    def source(self, task: str, split: Split = "train") -> Source:
        """The samples of one split; there is one task."""
        return _ThingsSource(f"{self.name}/{split}", self, split)

    def drawn(self, split: Split, index: int) -> PIL.Image:
        """A picture, drawn when it is first looked at."""
        if (split, index) not in self._drawn:
            self._drawn[split, index] = STYLES[self.style](self.world.image(split, index).pil())
        return self._drawn[split, index]


@dataclass
class _ThingsSource:
    name: str
    things: Things
    split: Split

    def __len__(self) -> int:
        return self.things.world.pictures[self.split]

    def __getitem__(self, index: int, /) -> Sample:
        (thing,) = self.things.world.scene(self.split, index).objects
        picture = Image(partial(self.things.drawn, self.split, index), key=f"{self.name}/{index}")
        return pair(picture, self.things.label(thing), id=f"{self.name}/{index}")

    def fingerprint(self) -> str:
        plain = self.things.world.source("pairs", self.split).fingerprint()
        return f"{plain}-{self.things.kind}-{self.things.style}".replace(" ", "-")


@dataclass
class Bench:
    """The arms over one set of classes to learn.

    Args:
        slug: of the result.
        learned: the set whose training pictures the shots are drawn from.
        sets: by name, what is judged; each with its own class names.
        work: the folder of the study.
    """

    slug: str
    learned: ClassesWorld
    sets: Mapping[str, ClassesWorld]
    budget: Budget
    work: Path
    claims: Sequence[Claim] = CLAIMS
    notes: Sequence[str] = NOTES
    title: str = field(kw_only=True)

    def __post_init__(self) -> None:
        self.clip, self.tokenizer = read_clip(CLIP)
        self.pixels = pixels_of(self.clip)

    def prompted(self, arm: str) -> PromptedCLIP:
        """The CLIP with new prompts."""
        return PromptedCLIP.over(self.clip, self.tokenizer, self.learned.classes, arm)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What all outcomes depend on, as JSON."""
        return {
            "clip": CLIP,
            "shots": SHOTS,
            "train": self.learned.source(TASK).fingerprint(),
            "classes": list(self.learned.classes),
            "judged on": {name: world.source(TASK, "heldout").fingerprint() for name, world in self.sets.items()},
            "budget": asdict(self.budget),
            "precision": choose_precision("auto", self.clip.device),
        }

    @cached_property
    def plain(self) -> dict[str, np.ndarray]:
        """What the plain CLIP names rightly."""
        return transfer(self.prompted("zero-shot").eval(), self.sets, self.pixels)

    def outcome(self, arm: str, seed: int) -> Outcome:
        """Prompts learned from shots of `seed`, and judged on every set."""
        steps = samples = 0
        right = self.plain
        if METHODS[arm] != METHODS["zero-shot"]:
            shots = Few(self.learned.source(TASK), self.learned.classes, SHOTS, seed)
            model, steps, samples = learn(
                lambda: self.prompted(arm), shots, self.pixels, self.budget.lesson, seed=seed,
                work=self.work / "training" / f"{short_hash([arm, self.config])}-seed-{seed}", trainable=(LEARNED,),
            )  # fmt: skip
            right = transfer(model.eval(), self.sets, self.pixels)
        items = {name: hits.tolist() for name, hits in right.items()}
        metrics = {"mean of sets": float(np.mean([hits.mean() for hits in right.values()]))}
        if {"base", "novel"} <= right.keys():
            items[GAIN] = (right["base"] - self.plain["base"]).tolist()
            metrics["harmonic mean"] = harmonic_mean(right["base"].mean(), right["novel"].mean())
        return Outcome(metrics=metrics, items=items, steps=steps, samples=samples)

    def study(self) -> Study:
        """All arms and claims."""
        sizes, arms = Sizes.of(self.clip.config), []
        for name in ARMS:
            learner = self.prompted(name).learner
            fields = {**asdict(prompts_of(name, sizes)), "parameters": sum(one.numel() for one in learner.parameters())}
            arms.append(Arm(name=name, run=lambda seed, name=name: self.outcome(name, seed), config=fields))  # type: ignore[misc]
        return Study(
            slug=self.slug, title=self.title, arms=arms, claims=self.claims, config=self.config,
            tuning="no arm was tuned: steps and rate were set before the first run", notes=self.notes,
        )  # fmt: skip


def things(kind: str, style: str, budget: Budget) -> Things:
    """As many drawn pictures as the budget says."""
    return Things(kind, style, budget.train_pictures, budget.heldout_pictures)


def headline(work: Path | None = None, budget: Budget = BUDGET) -> Study:
    """The study of the paper's claims, from base classes to novel ones at dusk."""
    world = things("colour and shape", "dusk", budget)
    base, novel = (Part(world, classes) for classes in base_and_novel(world.classes))
    return Bench(
        SLUG, base, {"base": base, "novel": novel}, budget, work or WORK / SLUG,
        title="prompts for some classes, judged on classes that they never saw (drawn objects at dusk)",
    ).study()  # fmt: skip


def cross_data_set(work: Path, budget: Budget = BUDGET) -> Study:
    """Prompts for colours and shapes at dusk on pictures whose classes have other names."""
    targets = {kind: things(kind, "dusk", budget) for kind in ("texture and shape", "colour")}
    claim = Claim(
        name="MaPLe carries to other sets better than CoOp", metric="mean of sets", arm="maple", against="coop",
        expect="higher", published="a table of the paper that was not at hand; ImageNet prompts on 10 further sets",
    )  # fmt: skip
    return Bench(
        work.name, things("colour and shape", "dusk", budget), targets, budget, work, (claim,), (),
        title="prompts for colours and shapes on classes of other names (drawn objects at dusk)",
    ).study()  # fmt: skip


def domain_shift(work: Path, budget: Budget = BUDGET) -> Study:
    """Prompts for colours and shapes by day on the same classes in other lights and views."""
    targets = {style: things("colour and shape", style, budget) for style in STYLES if style != "day"}
    claim = Claim(
        name="MaPLe carries to other lights better than CoOp", metric="mean of sets", arm="maple", against="coop",
        expect="higher", published="a table of the paper that was not at hand; ImageNet prompts on 4 variants of it",
    )  # fmt: skip
    return Bench(
        work.name, things("colour and shape", "day", budget), targets, budget, work, (claim,), (),
        title="prompts learned by day on the same classes in other lights and views (drawn objects)",
    ).study()  # fmt: skip


def _further(name: str, study: Callable[[Path], Study]) -> Callable[..., Study]:
    def made(*, data: Path | None, model: Path | None) -> Study:
        if data is not None or model is not None:
            raise UserError(f"the study {name} draws its pictures and takes {CLIP}; leave out --data and --model")
        return study(WORK / f"{SLUG}-{name}")

    return made


FURTHER: Mapping[str, Callable[..., Study]] = {
    "cross-data-set": _further("cross-data-set", cross_data_set),
    "domain-shift": _further("domain-shift", domain_shift),
}
