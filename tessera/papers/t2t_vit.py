"""Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet (2101.11986).

A picture becomes tokens in steps: cut into overlapping windows, mixed by a small attention layer, laid out as a picture
and cut anew, so that neighbouring tokens become one and edges survive (section 3.1). A deep and narrow transformer
reads the 196 tokens that are left (3.2). Everything is learned from scratch by classifying pictures (4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessera.data.images import Augment
from tessera.errors import UserError, nearest
from tessera.models.classifier import ImageClassifier
from tessera.objectives.classification import Mixing
from tessera.papers.classifying import ClassRecipe, train_classifier
from tessera.papers.figures import Figure
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import CONFIG
from tessera.papers.t2t_vit_study import FURTHER, headline
from tessera.study.counting import count
from tessera.study.design import Study
from tessera.train.optim import Optimiser
from tessera.vision.t2t_published import load_published
from tessera.vision.t2t_tokens import split_grid
from tessera.vision.t2t_vit import ABLATIONS, PUBLISHED, T2TViTConfig

IMAGENET_CLASSES = 1000
# 300 epochs of 1,281,167 pictures and 10 more at the lowest rate.
IMAGENET_STEPS = 310 * 1_281_167 // 512


@dataclass(frozen=True, kw_only=True)
class Recipe(ClassRecipe):
    """How a T2T-ViT is trained."""

    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: T2TViTConfig})


RECIPES = {
    "mini": Recipe(
        backbone="t2t-vit-mini", steps=800, batch=64, optimiser=Optimiser(kind="muon", lr=1e-3),
        augment=Augment(crop=0.7, flip=0.5), mixing=Mixing(chance=0.5),
    ),
    # The official main.py for T2T-ViT-14. RandAugment, erasing and colour jitter are not built here.
    "published": Recipe(
        backbone="t2t-vit-14", steps=IMAGENET_STEPS, batch=512,
        optimiser=Optimiser(lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05, warmup=10 / 310, floor=0.02, clip=None),
        augment=Augment(crop=0.28, flip=0.5), average=0.99996,
    ),
}  # fmt: skip


@paper("t2t-vit")
class T2TViTPaper(Paper):
    """Overlapping cuts with attention between them turn a picture into tokens for a deep and narrow transformer."""

    variants = (*PUBLISHED, *ABLATIONS)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        stages = [
            f"{size}: {one.backbone}, {one.steps:,} steps of {one.batch}, {one.optimiser.kind}, rate {one.optimiser.lr}"
            for size, one in RECIPES.items()
        ]
        return {
            "parts": ["soft splits (unfold)", "Performer or transformer token layers", "plain pre-norm transformer"],
            "stages": stages,
            "claims": [
                "more than 3 points better than ViT at half its size and cost, from scratch on ImageNet (abstract)",
                "top-1 at 224 pixels: T2T-ViT-7 71.7, -10 75.2, -12 76.5, -14 81.5, -19 81.9, -24 82.3,"
                " T2T-ViT_t-14 81.7, -19 82.4, -24 82.6; T2T-ViT-14 at 384 pixels 83.3 (official repository)",
            ],
            "not built": ["RandAugment, random erasing and colour jitter of the published training"],
        }

    def figures(self) -> Sequence[Figure]:
        """The table of the official repository: parameters and multiply-adds at 224 pixels."""
        rows = {
            "t2t-vit-7": ("4.3M", "1.1"), "t2t-vit-10": ("5.9M", "1.5"), "t2t-vit-12": ("6.9M", "1.8"),
            "t2t-vit-14": ("21.5M", "4.8"), "t2t-vit-19": ("39.2M", "8.5"), "t2t-vit-24": ("64.1M", "13.8"),
            "t2t-vit-t-14": ("21.5M", "6.1"), "t2t-vit-t-19": ("39.2M", "9.8"), "t2t-vit-t-24": ("64.1M", "15.0"),
        }  # fmt: skip
        notes = {"t2t-vit-24": "13.66 from the published shape; the transformer twin's 15.0 fits its own"}
        parameters = [
            Figure(f"{name}, parameters", row[0], at="parameters / total", variant=name) for name, row in rows.items()
        ]
        multiply_adds = [
            Figure(f"{name}, GMACs", row[1], at="gmacs", variant=name, note=notes.get(name, ""))
            for name, row in rows.items()
        ]
        large = "t2t-vit-14-384"
        return *parameters, *multiply_adds, Figure(f"{large}, parameters", "21.7M", "parameters / total", large)

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters, multiply-adds and tokens of the classifier with 1000 classes, for a picture of the size that the
        variant is published for."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"t2t-vit has no variant {variant!r}{nearest(variant, self.variants)}")
        with torch.device("meta"):
            model = ImageClassifier.over(variant, [f"class {number}" for number in range(IMAGENET_CLASSES)])
            backbone: Any = model.backbone
            side = backbone.config.image_size
            picture = torch.empty(1, 3, side, side)
            counted = count(model, {"pixel_values": picture})
            module = count(backbone.tokens, {"picture": picture})
        return {
            "parameters": {
                "total": counted["parameters"] + fixed(model),
                "trainable": counted["trainable"],
                "fixed (positions, random features)": fixed(model),
            },
            "gmacs": counted["gmacs"],
            "pixels": side,
            "tokens": tokens(backbone.config),
            "tokens-to-token module": {
                "parameters": module["parameters"] + fixed(backbone.tokens), "gmacs": module["gmacs"]
            },
        }  # fmt: skip

    def train(self, options: TrainOptions) -> Path:
        """Learn the classes of pictures. `--parts backbone=FILE` starts from official weights, saved as safetensors."""
        return train_classifier(self, options, RECIPES[options.size], lambda path: load_published(path)[0])

    def study(self) -> Study:
        """The study of the paper's claims on drawn shapes."""
        return headline()

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """The same arms on emoji and on Omniglot."""
        return FURTHER


def fixed(model: nn.Module) -> int:
    """Values that never train: the table of positions and the random features, which published counts include."""
    return sum(values.numel() for values in model.buffers())


def tokens(config: T2TViTConfig) -> dict[str, int]:
    """Tokens after each soft split."""
    grid, found = (config.image_size,) * 2, {}
    for number, split in enumerate(config.splits, start=1):
        grid = split_grid(split, *grid)
        found[f"split {number}"] = grid[0] * grid[1]
    return found
