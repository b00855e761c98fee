"""CvT: Introducing Convolutions to Vision Transformers (2103.15808).

Three stages of transformer blocks. The tokens of each come out of an overlapping, strided convolution (section 3.1),
queries, keys and values out of depthwise ones, those of keys and values at a quarter of the places (3.2). Convolutions
know where they are, so that nothing else has to say it: no position embeddings, pictures of any size (4.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tessera.data.images import Augment
from tessera.errors import UserError, nearest
from tessera.models.classifier import ImageClassifier
from tessera.objectives.classification import Mixing
from tessera.papers.classifying import ClassRecipe, train_classifier
from tessera.papers.cvt_study import FURTHER, headline
from tessera.papers.figures import Figure
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.settings import CONFIG
from tessera.study.counting import count, macs
from tessera.study.design import Study
from tessera.train.optim import Optimiser
from tessera.vision.cvt import CvTConfig
from tessera.vision.cvt_published import load_published

IMAGENET_CLASSES = 1000
EPOCHS = 310  # ten of them at the lowest rate
SIDES = (224, 384)
# Parameters in millions, multiply-adds in 10^9 at 224 and 384 pixels: the table of the official README.
TABLE = {"cvt-13": ("20M", "4.5", "16.3"), "cvt-21": ("32M", "7.1", "24.9"), "cvt-w24": ("277M", None, "193.2")}


@dataclass(frozen=True, kw_only=True)
class Recipe(ClassRecipe):
    """With the fields of a CvT."""

    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: CvTConfig})


RECIPES = {
    "mini": Recipe(
        backbone="cvt-mini", steps=800, batch=64, optimiser=Optimiser(kind="muon", lr=1e-3),
        augment=Augment(crop=0.7, flip=0.5), mixing=Mixing(chance=0.5),
    ),
    # experiments/imagenet/cvt/*.yaml of the official code, which give rate and batch of one GPU, and not how many there
    # were. RandAugment, erasing and colour jitter are not built here.
    "published": Recipe(
        backbone="cvt-13", steps=EPOCHS * 1_281_167 // 256, batch=256,
        optimiser=Optimiser(lr=2.5e-4, betas=(0.9, 0.999), weight_decay=0.05, warmup=5 / EPOCHS, floor=0.04, clip=None),
        augment=Augment(crop=0.28, flip=0.5),
    ),
}  # fmt: skip


@paper("cvt")
class CvTPaper(Paper):
    """A vision transformer with convolutions before its tokens and its attention needs no position embeddings."""

    variants = tuple(TABLE)

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        stages = [
            f"{size}: {one.backbone}, {one.steps:,} steps of {one.batch}, {one.optimiser.kind}, rate {one.optimiser.lr}"
            for size, one in RECIPES.items()
        ]
        return {
            "parts": [
                "overlapping, strided convolutions between stages",
                "depthwise convolution, batch norm and linear map before queries, keys and values",
                "scores times width ** -0.5, of the whole width and not of a head, as in the official code",
                "a class token in the last stage alone",
            ],
            "stages": stages,
            "claims": [
                "better than vision transformers and ResNets with fewer parameters and FLOPs (abstract); top-1 on"
                " ImageNet-1k at 224 / 384 pixels: CvT-13 81.6 / 83.0, CvT-21 82.5 / 83.3; after ImageNet-22k, at 384:"
                " CvT-13 83.3, CvT-21 84.9, CvT-W24 87.6 (official README; 87.7 in the abstract)",
                "position embeddings can be left out (abstract)",
            ],
            "not built": ["RandAugment, random erasing and colour jitter of the published training"],
        }

    def figures(self) -> Sequence[Figure]:
        """The table of the official README. Multiply-adds may be counted in more than one way."""
        note = "194.2 follows from the published configuration; the README does not say how it counted"
        notes = {("cvt-w24", 384): note}
        found = []
        for name, (parameters, *multiply_adds) in TABLE.items():
            found.append(Figure(f"{name}, parameters", str(parameters), at="parameters / total", variant=name))
            found += [
                Figure(
                    f"{name}, GMACs at {side} pixels", printed, at=f"gmacs / {side} pixels", variant=name, within=0.005,
                    note=notes.get((name, side), ""),
                )
                for side, printed in zip(SIDES, multiply_adds, strict=True) if printed is not None
            ]  # fmt: skip
        return found

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters, multiply-adds and tokens of the classifier with 1000 classes; all variants, or one."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"cvt has no variant {variant!r}{nearest(variant, self.variants)}")
        return _size(variant)

    def train(self, options: TrainOptions) -> Path:
        """Learn the classes of pictures and write the classifier to `options.out`/model."""
        return train_classifier(self, options, RECIPES[options.size], lambda file: load_published(file)[0])

    def study(self) -> Study:
        """The study of position embeddings, at the size of the training pictures and at another."""
        return headline()

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """The same arms on other pictures."""
        return FURTHER


def _size(variant: str) -> dict[str, Any]:
    with torch.device("meta"):
        model = ImageClassifier.over(variant, [f"class {number}" for number in range(IMAGENET_CLASSES)])
        backbone: Any = model.backbone
        gmacs = {f"{side} pixels": macs(model, {"pixel_values": torch.empty(1, 3, side, side)}) / 1e9 for side in SIDES}
    config, last = backbone.config, len(backbone.stages) - 1
    tokens = {}
    for number, (rows, columns) in enumerate(config.grids(SIDES[0], SIDES[0])):
        step, extra = config.key_stride, int(number == last)
        tokens[f"stage {number + 1}"] = {
            "queries": rows * columns + extra, "keys": -(-rows // step) * -(-columns // step) + extra
        }  # fmt: skip
    stages = {f"stage {number + 1}": count(stage)["parameters"] for number, stage in enumerate(backbone.stages)}
    return {
        "parameters": {
            "total": count(model)["parameters"], **stages, "last norm": count(backbone.norm)["parameters"],
            "head": count(model.head)["parameters"],
        },
        "batch norm statistics": sum(values.numel() for values in model.buffers()),
        "gmacs": gmacs,
        f"tokens at {SIDES[0]} pixels": tokens,
    }  # fmt: skip
