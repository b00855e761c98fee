"""Unleashing Text-to-Image Diffusion Models for Visual Perception, VPD (2303.02153).

A denoising U-Net that was trained to paint what words say runs once over the clean latent of a picture, with words as
its context. The features of its decoder, and where its cross-attention saw each word, are a pyramid that a light head
reads; U-Net and head are trained together. The pyramid and the heads are in `tessera.models.diffusion.perception`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig

from tessera.adapt.class_vectors import photo_templates
from tessera.data.dense import DenseReader, DenseWorld, check_task, open_dense
from tessera.data.few import First
from tessera.data.images import Augment
from tessera.errors import UserError, nearest
from tessera.evaluate.dense import mean_scores, model_depths, model_overlap
from tessera.models.diffusion.perception import PerceptionConfig, PerceptionModel
from tessera.models.diffusion.published import UNET, VAE
from tessera.papers.figures import Figure
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import CONFIG, change, check_roles
from tessera.papers.vpd_study import FURTHER, MINI, PAINTER, PART, PLAIN, UNET_WEIGHTS, headline
from tessera.perceiver import Perceiver
from tessera.study.counting import count
from tessera.study.design import Study
from tessera.train.dense import dense_loader, dense_stage
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.text_to_image import TextToImage, read_text_to_image

WORLD = "scenes"
ROLES = (PART, "text")
JUDGED = 300  # held-out pictures that a training is judged on
ADE_CLASSES = 150


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a U-Net learns to perceive.

    Args:
        model: fields of `PerceptionConfig` that differ.
        templates: sentences that class names are averaged over: the 80 "photo" ones of CLIP, or a few "plain" ones.
    """

    task: Literal["segmentation", "referring", "depth"]
    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: PerceptionConfig})
    templates: Literal["photo", "plain"] = "photo"
    steps: int
    batch: int
    optimiser: Optimiser
    augment: Augment | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        """Templates, with a place {} for the class name."""
        return photo_templates() if self.templates == "photo" else PLAIN

    def make(self, parts: TextToImage, world: DenseWorld, vectors: Tensor | None) -> PerceptionModel:
        """A new model over the parts, which knows what `parts.class_vectors` says of the world's classes."""
        fields = {"max_depth": world.max_depth, **self.model}
        return parts.perceiver(self.task, world.classes, vectors, **fields)

    def stage(self, perceiver: Perceiver, world: DenseWorld, **places: int) -> Stage:
        """The stage that trains the model on the training pictures of `world`.

        Args:
            places: `seed`, `rank`, `world_size` and `workers` of the loader.
        """
        read = reader(perceiver, world)
        read = replace(read, pixels=replace(read.pixels, augment=self.augment))
        loader = dense_loader(world.source(self.task), read, self.batch, **places)
        return dense_stage(perceiver.model, loader, self.steps, optimiser=self.optimiser)


_MINI = Optimiser(lr=2e-3, factors={UNET_WEIGHTS: 0.25})
RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    "mini": {
        "segmentation": Recipe(
            task="segmentation", model=MINI, templates="plain", steps=1000, batch=16, optimiser=_MINI
        ),
        "referring": Recipe(task="referring", model=MINI, templates="plain", steps=1000, batch=16, optimiser=_MINI),
        "depth": Recipe(
            task="depth", model={**MINI, "largest_map": 0.0, "width": 32}, templates="plain", steps=1000, batch=16,
            optimiser=_MINI,
        ),
    },
    # Rates fall by half a cosine here, by powers of a straight line in the official code.
    "published": {
        "segmentation": Recipe(
            task="segmentation", steps=80_000, batch=16, augment=Augment(crop=0.5, flip=0.5),
            optimiser=Optimiser(lr=8e-5, betas=(0.9, 0.999), weight_decay=1e-3, warmup=1500 / 80_000, floor=0.0,
                                clip=None, factors={UNET_WEIGHTS: 0.1}),
        ),
        # Its trainer names a factor on the U-Net's rate that nothing multiplies by.
        "referring": Recipe(
            task="referring", steps=40 * 42_404 // 32, batch=32,
            optimiser=Optimiser(lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-2, warmup=0.0, floor=0.0, clip=None),
        ),
        "depth": Recipe(
            task="depth", model={"image_size": 480, "largest_map": 0.0, "width": 192}, steps=25 * 24_231 // 24,
            batch=24, augment=Augment(crop=0.75, flip=0.5),
            optimiser=Optimiser(lr=5e-4, betas=(0.9, 0.999), weight_decay=0.1, warmup=0.5, floor=3e-5 / 5e-4,
                                clip=None, factors={UNET_WEIGHTS: 0.01}),
        ),
    },
}  # fmt: skip


@paper("vpd")
class VPD(Paper):
    """A text-to-image U-Net looks once at a clean picture, and its features and attention maps feed a dense head."""

    variants = ("segmentation", "referring", "depth")

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        stages = [
            f"{size}, {task}: {one.steps:,} steps of {one.batch}, rate {one.optimiser.lr:g},"
            f" {one.optimiser.factors.get(UNET_WEIGHTS, 1.0):g} of it for the U-Net"
            for size, recipes in RECIPES.items()
            for task, one in recipes.items()
        ]
        return {
            "parts": [
                "any latent text-to-image U-Net of diffusers whose words enter by cross-attention alone: a folder of"
                " Stable Diffusion 1 or 2, or a painter of ours (--parts diffusion=FOLDER)",
                "its autoencoder's encoder and its text tower, both frozen; a text adapter with gamma",
                "semantic segmentation: a feature pyramid network and its semantic head; referring segmentation: LAVT's"
                " decoder; depth: transposed convolutions (--set task=segmentation|referring|depth)",
            ],
            "stages": [*stages, "pictures enter in one size; latents are not scaled, as in the official code"
                                " (--set model.scaled=true), but for the mini painter, which knows no others"],
            "claims": [
                "ADE20K: mIoU 53.7 with one scale and 54.6 with several; RefCOCO: overall IoU 73.5; NYUv2: RMSE 0.254"
                " (official repository)",
                "adapts in fewer steps than supervised and masked pre-training (abstract)",
            ],
            "other than in the text": [
                "the painter of the mini size has one resolution, of an eighth of the picture's side, whose maps are"
                " kept, and the segmentation head doubles it twice",
                "the rate falls by half a cosine",
            ],
            "not built": [
                "photometric distortion and enlarged crops, several scales and mirrored pictures in the test",
            ],
        }  # fmt: skip

    def figures(self) -> Sequence[Figure]:
        """What the official configurations say of the pyramid."""
        return (
            Figure("feature channels of segmentation, from fine to coarse", "320, 790, 1430, 1280",
                   at="feature channels", variant="segmentation"),
            Figure("feature channels of referring segmentation", "320, 680, 1320, 1280", at="feature channels",
                   variant="referring"),
            Figure("feature channels of depth", "320, 640, 1280, 1280", at="feature channels", variant="depth"),
        )  # fmt: skip

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters and feature maps over Stable Diffusion 1.5, at 512 x 512 pixels; all tasks, or one."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"{self.slug} has no variant {variant!r}{nearest(variant, self.variants)}")
        return _size(variant)

    def train(self, options: TrainOptions) -> Path:
        """Train U-Net, text adapter and head for one task, `--set task=`; `options.out`/model."""
        recipe = asked(options)
        if len(options.data) > 1:
            raise UserError(f"one set of pictures is learned at a time, not {len(options.data)}")
        world = open_dense(options.data[0] if options.data else WORLD, recipe.task)
        name, text = parts_of(options)
        parts = read_text_to_image(name, text)
        vectors = parts.class_vectors(world.classes, recipe.sentences)
        recipe.make(parts, world, vectors)  # what cannot be is said before anything is written
        trainer = self.trainer(options, recipe)
        made: list[Perceiver] = []
        places = {
            "seed": options.seed, "rank": trainer.rank, "world_size": trainer.world, "workers": options.reading_threads
        }  # fmt: skip

        def stages() -> Iterator[Stage]:
            model = recipe.make(parts, world, vectors)  # here the engine has seeded the generators
            made.append(Perceiver(model, parts.tokenizer if recipe.task == "referring" else None))
            yield recipe.stage(made[0], world, **places)

        trainer.run(stages(), recipe.steps)
        if trainer.main:
            made[0].model.eval()
            made[0].save(options.out / "model")
            trainer.reporter.note(judged(made[0], world))
        return options.out / "model"

    def study(self) -> Study:
        """The study of the paper's claims, on drawn shapes."""
        return headline()

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """Latents as the autoencoder gives them, beside those that the U-Net was trained on."""
        return FURTHER


def asked(options: TrainOptions) -> Recipe:
    """The recipe of the task with the steps and settings that `options` ask for.

    Raises:
        UserError: an unknown task or setting.
    """
    settings = dict(options.settings)
    if "model.task" in settings:
        raise UserError("the task is named by --set task=..., not by model.task")
    recipe = RECIPES[options.size][check_task(settings.pop("task", "segmentation"))]
    return change(replace(recipe, steps=options.steps or recipe.steps), settings)


def parts_of(options: TrainOptions) -> tuple[str, str | None]:
    """Names or folders of the diffusion model and of its text tower, where that is named.

    Raises:
        UserError: an unknown role, or the published size without a diffusion model.
    """
    check_roles(options.parts, ROLES)
    if PART not in options.parts and options.size == "published":
        raise UserError(f"the published size needs a folder of Stable Diffusion 1.5; give --parts {PART}=FOLDER")
    return options.parts.get(PART, PAINTER), options.parts.get("text")


def reader(perceiver: Perceiver, world: DenseWorld) -> DenseReader:
    """How samples of `world` enter the model."""
    return DenseReader(
        check_task(perceiver.task), world.classes, perceiver.pixels, world.max_depth, perceiver.phrase
    )  # fmt: skip


def judged(perceiver: Perceiver, world: DenseWorld) -> str:
    """A sentence: how well held-out pictures are seen."""
    held = First(world.source(perceiver.task, "heldout"), JUDGED)
    read, model = reader(perceiver, world), perceiver.model
    start = f"held out: {len(held)} pictures, "
    if perceiver.task == "depth":
        scores = mean_scores(model_depths(model, held, read))
        return start + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    found = model_overlap(model, held, read)
    if perceiver.task == "referring":
        return start + f"overall IoU {found.overall():.1%}, mean of pictures {found.by_picture().mean():.1%}"
    return start + f"mIoU {found.mean():.1%}"


@lru_cache
def _size(task: str) -> dict[str, Any]:
    fields = dict(RECIPES["published"][task].model)
    classes = {"segmentation": ADE_CLASSES, "depth": 1}.get(task, 0)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    config = PerceptionConfig(
        task=task,  # type: ignore[arg-type]
        unet_config=UNET, autoencoder_config={"_class_name": "AutoencoderKL", **VAE},
        tower_config=text.to_diff_dict() if task == "referring" else None,
        id2label={place: str(place) for place in range(classes)}, **fields,
    )  # fmt: skip
    with torch.device("meta"):
        model = PerceptionModel(config)
        width = model.pyramid.unet.config.cross_attention_dim
        features = model.features(torch.empty(1, 4, 64, 64), torch.empty(1, config.tokens, width))
    parts = {
        "u-net": model.pyramid, "text adapter": model.adapter, "head": model.head, "autoencoder": model.autoencoder,
        "text tower": model.text,
    }  # fmt: skip
    counts = {name: count(part)["parameters"] for name, part in parts.items() if part is not None}
    if task == "segmentation":
        neck = nn.ModuleList([model.head.laterals, model.head.smooth])  # type: ignore[list-item]
        counts["neck"] = count(neck)["parameters"]
        counts["head"] -= counts["neck"]
    counts["trained"] = sum(one.numel() for one in model.parameters() if one.requires_grad)
    return {
        "parameters": counts,
        "feature channels": ", ".join(str(one.shape[1]) for one in features),
        "feature sides": ", ".join(str(one.shape[2]) for one in features),
    }
