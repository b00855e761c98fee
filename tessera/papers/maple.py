"""MaPLe: Multi-modal Prompt Learning (2210.03117).

CLIP is frozen. A few prompts are learned in both of its towers, in the first layers, each layer's own; those of the
vision tower are linear functions of the text tower's, so that one loss moves both. The prompts learn a few pictures of
each class and are judged on classes, pictures and styles that they never saw. Prompts and the way they enter CLIP are
in `tessera.adapt`; the baselines are options of the same learner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CLIPConfig, CLIPModel

from tessera.adapt.class_names import TEMPLATE
from tessera.adapt.prompted_clip import LEARNED, PromptedCLIP
from tessera.adapt.prompts import PromptLearner, Prompts, Sizes, prompts_of
from tessera.data.few import Few
from tessera.data.images import Augment
from tessera.data.labelled import ClassesWorld, open_labelled
from tessera.data.readers.classes import TASK
from tessera.data.source import Source
from tessera.errors import UserError, nearest
from tessera.evaluate.generalisation import Part, base_and_novel, harmonic_mean, transfer
from tessera.evaluate.intervals import exact_binomial
from tessera.papers.classifying import WORLD
from tessera.papers.figures import Figure
from tessera.papers.maple_study import FURTHER, headline
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import CONFIG, change, check_roles
from tessera.prompted import PromptedClassifier, pixels_of, read_clip
from tessera.study.design import Study
from tessera.train.classification import classification_stage, picture_loader
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage

PART = "clip"
MINI = "mini/clip"
# Method and changed fields; the cross-data-set prompts are shallower, CoOp's are counted with 4.
VARIANTS: dict[str, tuple[str, dict[str, int]]] = {
    "maple": ("maple", {}),
    "maple-cross-data-set": ("maple", {"text_depth": 3, "vision_depth": 3}),
    "maple-shallow": ("maple", {"text_depth": 1, "vision_depth": 1}),
    "maple-shared": ("maple-shared", {}),
    "coop": ("coop", {"text": 4}),
    "cocoop": ("cocoop", {}),
    "vpt": ("vpt", {}),
    "language": ("language", {}),
    "ivlp": ("ivlp", {}),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How prompts are learned.

    Args:
        method: a name of `tessera.adapt.prompts.METHODS`.
        prompts: fields of `Prompts` that differ from the method's.
        epochs: of the pictures learned from; `steps` above 0 wins.
        shots: pictures of each class that are learned from; 0 for all.
        learn: "base" learns the first half of the classes and is judged on each half.
    """

    method: str = "maple"
    prompts: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: Prompts})
    template: str = TEMPLATE
    epochs: int
    steps: int = 0
    batch: int
    shots: int = 16
    learn: Literal["all", "base"] = "all"
    optimiser: Optimiser
    augment: Augment = Augment()

    def length(self, pictures: int) -> int:
        """Steps that the training takes."""
        return self.steps or self.epochs * -(-pictures // self.batch)

    def stage(self, model: PromptedCLIP, train: Source, **places: int) -> Stage:
        """The stage that trains the prompts of `model` on the pictures `train`.

        Args:
            places: `seed`, `rank`, `world_size` and `workers` of the loader.
        """
        pixels = replace(pixels_of(model.clip), augment=self.augment)
        return classification_stage(
            model, picture_loader(train, model.classes, pixels, self.batch, **places), self.length(len(train)),
            name="prompts", optimiser=self.optimiser, smoothing=0.0, trainable=(LEARNED,),
        )  # fmt: skip


RECIPES = {
    "mini": Recipe(epochs=10, batch=16, optimiser=Optimiser(lr=2e-3)),
    # The official rate is constant for an epoch, then falls epoch by epoch; here it climbs and falls step by step.
    "published": Recipe(
        epochs=5, batch=4, augment=Augment(crop=0.28, flip=0.5),
        optimiser=Optimiser(
            kind="sgd", lr=0.0035, betas=(0.9, 0.999), weight_decay=5e-4, warmup=0.2, floor=0.0, clip=None
        ),
    ),
}  # fmt: skip


@paper("maple")
class MaPLePaper(Paper):
    """A few prompts are learned in both towers of a frozen CLIP, those of the one a function of those of the other."""

    variants = tuple(VARIANTS)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        stages = [
            f"{size}: {one.shots} pictures a class, {one.epochs} epochs in batches of {one.batch},"
            f" {one.optimiser.kind}, rate {one.optimiser.lr}"
            for size, one in RECIPES.items()
        ]
        return {
            "parts": [
                "any CLIP of transformers, frozen", "2 prompts in each of the first 9 layers of both towers",
                "a linear function from text to vision prompts in each of these layers",
            ],
            "stages": stages,
            "claims": [
                "11 data sets, 16 pictures a class of the base half (official repository): accuracy on base classes, on"
                " novel ones, and their harmonic mean: CLIP 69.34 74.22 71.70, CoOp 82.69 63.22 71.66,"
                " CoCoOp 80.47 71.69 75.83, vision prompts 80.24 73.43 76.68, language prompts 81.72 73.81 77.56,"
                " independent prompts 82.15 74.07 77.90, MaPLe 82.28 75.14 78.55",
                "3.45 points on novel classes and 2.72 of the harmonic mean above CoCoOp (abstract)",
            ],
            "not built": ["the constant rate of the first epoch, in which ours climbs"],
        }  # fmt: skip

    def figures(self) -> Sequence[Figure]:
        """The paper's count of trained parameters."""
        return (Figure("trained parameters", "3.55M", at="parameters / trained", variant="maple"),)

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters of CLIP ViT-B/16 and of the prompts, and the positions of each tower."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in VARIANTS:
            raise UserError(f"maple has no variant {variant!r}{nearest(variant, VARIANTS)}")
        config = CLIPConfig(vision_config={"patch_size": 16})  # the rest of ViT-B/16 is what transformers starts from
        method, changes = VARIANTS[variant]
        with torch.device("meta"):
            clip = CLIPModel(config)
            learner = PromptLearner(prompts_of(method, Sizes.of(config), **changes), Sizes.of(config))
        total, trained = clip.num_parameters(), numbers(learner.parameters())
        words = clip.text_model.embeddings.token_embedding.weight.numel()
        patches = clip.vision_model.embeddings.num_positions
        return {
            "parameters": {"clip": total, "trained": trained, **parts(learner)},
            "percent of clip": 100 * trained / total,
            "percent of clip without its words": 100 * trained / (total - words),
            "positions": {
                "text": clip.text_model.config.max_position_embeddings, "vision": patches + learner.prompts.vision
            },
        }  # fmt: skip

    def train(self, options: TrainOptions) -> Path:
        """Learn prompts from a few pictures of each class; further sets of `--data` are those to be judged on.

        `--parts clip=FOLDER` is a published CLIP as transformers saves it.
        """
        recipe = change(replace(RECIPES[options.size], steps=options.steps or 0), options.settings)
        name = clip_of(options)
        worlds = [open_labelled(one) for one in options.data or (WORLD,)]
        sets, train = protocol(recipe, worlds, options.seed)
        learned = next(iter(sets.values())).classes
        clip, tokenizer = read_clip(name)
        asked = prompts_of(recipe.method, Sizes.of(clip.config), **recipe.prompts)
        if asked == Prompts():
            raise UserError(
                f"the method {recipe.method!r} has no prompts to train; name another with --set method=maple"
            )
        new = partial(PromptedCLIP.over, clip, tokenizer, learned, asked, recipe.template)
        for world in sets.values():  # what cannot be is said before anything is written
            new().renamed(world.classes)
        trainer = self.trainer(options, recipe)
        made: list[PromptedCLIP] = []
        places = {"seed": options.seed, "rank": trainer.rank, "world_size": trainer.world}

        def stages() -> Iterator[Stage]:
            made.append(new())  # here the engine has seeded the generators
            yield recipe.stage(made[0], train, workers=options.reading_threads, **places)

        trainer.run(stages(), recipe.length(len(train)))
        folder = options.out / "model"
        if trainer.main:
            prompted = PromptedClassifier(made[0].eval(), name)
            prompted.save(folder)
            tell(trainer.reporter.note, prompted, sets)
        return folder

    def study(self) -> Study:
        """The study of the paper's claims."""
        return headline()

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """Prompts on other sets of pictures, and on the same classes drawn otherwise."""
        return FURTHER


def numbers(parameters: Any) -> int:
    """How many values there are."""
    return sum(one.numel() for one in parameters)


def parts(learner: PromptLearner) -> dict[str, int]:
    """Values of each part of a learner that it has, those of the first layer apart from the deep ones'."""
    found = {
        "first text prompts": numbers(learner.text[:1]),
        "deep text prompts": numbers(learner.text[1:]),
        "first vision prompts": numbers(learner.vision[:1]),
        "deep vision prompts": numbers(learner.vision[1:]),
        "first projection": numbers(learner.projections[:1].parameters()),
        "deep projections": numbers(learner.projections[1:].parameters()),
        "network of the picture": numbers(learner.conditional.parameters()) if learner.conditional is not None else 0,
    }
    return {name: number for name, number in found.items() if number}


def clip_of(options: TrainOptions) -> str:
    """Name of the CLIP, or its folder.

    Raises:
        UserError: an unknown role, or the published size without one.
    """
    check_roles(options.parts, [PART])
    if PART not in options.parts and options.size == "published":
        raise UserError(f"the published size needs a CLIP as transformers saves it; give --parts {PART}=FOLDER")
    named = options.parts.get(PART, MINI)
    return str(Path(named).resolve()) if Path(named).is_dir() else named


def protocol(
    recipe: Recipe, worlds: Sequence[ClassesWorld], seed: int
) -> tuple[dict[str, ClassesWorld | Part], Source]:
    """The sets to be judged on, that which is learned first, and the pictures to learn from."""
    first, *others = worlds
    sets: dict[str, ClassesWorld | Part]
    if recipe.learn == "base":
        base, novel = base_and_novel(first.classes)
        sets = {"base": Part(first, base), "novel": Part(first, novel)}
    else:
        sets = {first.name: first}
    learned = next(iter(sets.values()))
    train = learned.source(TASK)
    if recipe.shots:
        train = Few(train, learned.classes, recipe.shots, seed)
    return sets | {world.name: world for world in others}, train


def tell(note: Callable[[str], None], prompted: PromptedClassifier, sets: Mapping[str, ClassesWorld | Part]) -> None:
    """Say of each set how many of its held-out pictures are named rightly among its own classes."""
    shares = {}
    for name, right in transfer(prompted.model, sets, prompted.pixels).items():
        share = exact_binomial(int(right.sum()), len(right))
        shares[name] = share.value
        note(f"{name}: {share.value:.1%} of {share.n} held-out pictures right"
             f" (95 % interval {share.low:.1%} to {share.high:.1%})")  # fmt: skip
    if {"base", "novel"} <= shares.keys():
        note(f"harmonic mean of base and novel: {harmonic_mean(shares['base'], shares['novel']):.1%}")
