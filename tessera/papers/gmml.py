"""GMML is All you Need: Group Masked Model Learning (2205.14986).

Groups of connected tokens of a picture are overwritten by noise or by pieces of another picture. An encoder that sees
all tokens, of which nothing says where they were changed, and a light head after it, restore what was there. No second
view, no negatives, no running mean of the weights. Afterwards the head goes and the encoder learns classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tessera.data.images import Augment
from tessera.errors import UserError, nearest
from tessera.files import atomic_folder
from tessera.models.classifier import ImageClassifier
from tessera.models.masked_image import MaskedImageModel
from tessera.models.masked_image_published import load_published
from tessera.objectives.classification import Mixing
from tessera.objectives.group_masking import GroupMasking
from tessera.papers.classifying import finish, starting_backbone
from tessera.papers.figures import Figure
from tessera.papers.gmml_study import FURTHER, headline
from tessera.papers.registry import Paper, TrainOptions, paper
from tessera.papers.restoring import Pretraining, RestoringRecipe, open_both
from tessera.papers.settings import change
from tessera.study.counting import count, macs
from tessera.study.design import Study
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.parts import quiet

EPOCH = 1_281_167  # pictures of ImageNet
# Encoder, head and total: counted from the released code, which prints none.
TABLE = {
    "vit-ti16": ("5,524,416", None, None),
    "vit-s16": ("21,665,664", "738,435", "22,404,099"),
    "vit-b16": ("85,798,656", None, "88,160,259"),
}


RECIPES = {
    "mini": RestoringRecipe(
        backbone="vit-mini", masking=GroupMasking(block=0.5, align=4), blocks=[-4, -3, -2, -1],
        pretrain=Pretraining(
            steps=1600, batch=64, optimiser=Optimiser(kind="muon", lr=1e-3), augment=Augment(crop=0.7, flip=0.5)
        ),
        steps=400, batch=64, optimiser=Optimiser(kind="muon", lr=1e-3), augment=Augment(crop=0.7, flip=0.5),
    ),
    # main.py of the release: 256 pictures in two crops. It has no fine-tuning; that is DeiT's, as the text says.
    "published": RestoringRecipe(
        backbone="vit-s16", model={"drop_path": 0.1}, masking=GroupMasking(), blocks=[-7, -5, -3, -1],
        pretrain=Pretraining(
            steps=800 * EPOCH // 256, batch=512, augment=Augment(crop=0.22, flip=0.5),
            optimiser=Optimiser(
                lr=5e-4, betas=(0.9, 0.999), weight_decay=0.04, warmup=10 / 800, floor=0.002, clip=3.0
            ),
        ),
        steps=300 * EPOCH // 1024, batch=1024, augment=Augment(crop=0.28, flip=0.5), mixing=Mixing(),
        optimiser=Optimiser(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05, warmup=5 / 300, floor=0.01, clip=None),
    ),
}  # fmt: skip


@paper("gmml")
class GMML(Paper):
    """An encoder learns to see by restoring groups of tokens that noise or another picture overwrote."""

    variants = (*TABLE, "t2t-vit-14", "cvt-13")

    def describe(self) -> Mapping[str, Sequence[str]]:
        """Headed lists of lines for `tessera show`."""
        stages = []
        for size, one in RECIPES.items():
            before = one.pretrain
            stages.append(
                f"{size}: {one.backbone}, {before.steps:,} steps of {before.batch} crops, {one.steps:,} of classes"
            )
        return {
            "parts": [
                "any backbone with a grid of tokens (--set backbone=cvt-mini)",
                "group masking: rectangles of noise, zeros or copies on 50 to 75 % of a picture, or of another one on"
                " 30 %",
                "three layers on each token, then its pixels, from the mean of four blocks after the last norm",
                "L1 on the hidden values, against the clean picture with the same augmentation",
            ],
            "stages": [
                *stages,
                "--data CLASSES, or --data PICTURES CLASSES to restore pictures that have none; the encoder is left in"
                " backbone/, and --parts backbone=FOLDER starts from one and learns classes alone",
            ],
            "claims": [
                "better than earlier self-supervised methods, without momentum encoder, large batches or stop-gradient"
                " (abstract), and than supervised pre-training (page 1); the tables were not at hand",
            ],
            "not built": [
                "colour jitter and blur, small extra crops, weight decay that rises from 0.04 to 0.4, and clipping of"
                " each parameter alone (here of all together)",
                "a second head on the class token beside that on the mean of the tokens, which alone is read here",
            ],
        }  # fmt: skip

    def figures(self) -> Sequence[Figure]:
        """What follows from the released code."""
        found = []
        for name, row in TABLE.items():
            for what, printed in zip(("encoder", "head", "total"), row, strict=True):
                if printed is not None:
                    found.append(Figure(f"{name}, {what}", printed, at=f"parameters / {what}", variant=name))
        return *found, Figure("vit-s16, GMACs", "4.60", at="gmacs / encoder", variant="vit-s16", within=0.005)

    def size(self, variant: str | None = None) -> dict[str, Any]:
        """Parameters and multiply-adds of encoder and head over one 224 x 224 picture; all variants, or one."""
        if variant is None:
            return {name: self.size(name) for name in self.variants}
        if variant not in self.variants:
            raise UserError(f"gmml has no variant {variant!r}{nearest(variant, self.variants)}")
        with torch.device("meta"):
            model = MaskedImageModel.over(variant)
            picture = {"pixel_values": torch.empty(1, 3, 224, 224)}
            encoder, whole = count(model.backbone, picture), macs(model, picture) / 1e9
        rows, columns = model.backbone.grid_of(224, 224)
        parameters = {"encoder": encoder["parameters"], "head": count(model.head)["parameters"]}
        return {
            "parameters": {**parameters, "total": sum(parameters.values())},
            "gmacs": {"encoder": encoder["gmacs"], "with head": whole},
            "tokens": rows * columns,
        }

    def train(self, options: TrainOptions) -> Path:
        """Restore pictures, learn classes; the encoder goes to `options.out`/backbone, the classifier to model."""
        recipe = change(RECIPES[options.size].scaled(options.steps, bool(options.parts)), options.settings)
        start = starting_backbone(recipe, options, lambda file: load_published(file).backbone)
        if not options.parts:
            recipe.check()
        pictures, world = open_both(options.data)
        trainer = self.trainer(options, recipe)
        made: list[ImageClassifier] = []
        places = {
            "seed": options.seed, "rank": trainer.rank, "world_size": trainer.world, "workers": options.reading_threads
        }  # fmt: skip

        def stages() -> Iterator[Stage]:
            backbone = start()
            if not options.parts:
                yield recipe.restoring(backbone, pictures, **places)
                if trainer.main:
                    with atomic_folder(options.out / "backbone") as aside, quiet():
                        backbone.save_pretrained(aside)
            # The class token was not trained: no loss was on it.
            made.append(ImageClassifier.over(backbone, world.classes, reads="tokens"))
            yield recipe.stage(made[0], world, **places)

        trainer.run(stages(), recipe.steps + (0 if options.parts else recipe.pretrain.steps))
        return finish(trainer, made[0], world, options.out / "model")

    def study(self) -> Study:
        """Restoring first against classes from scratch, and groups against isolated tokens."""
        return headline()

    @property
    def studies(self) -> Mapping[str, Callable[..., Study]]:
        """How much to hide, and the same arms on other pictures."""
        return FURTHER
