"""What papers share that restore hidden parts of pictures and then learn classes: recipe, pictures, the first stage.

The second stage is that of `tessera.papers.classifying`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tessera.data.images import Augment, Pixels
from tessera.data.labelled import ClassesWorld
from tessera.data.readers.pictures import TASK
from tessera.data.readers.pictures import open_pictures as open_folder
from tessera.data.source import Source
from tessera.errors import UserError
from tessera.models.classifier import IMAGENET
from tessera.models.masked_image import MaskedImageModel
from tessera.objectives.group_masking import GroupMasking
from tessera.papers.classifying import ClassRecipe, open_pictures
from tessera.papers.settings import CONFIG
from tessera.train.masked_images import masked_loader, restoring_stage
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.vision.base import VisionBackbone
from tessera.vision.registry import create
from tessera.vision.vit import PlainViTConfig


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How long and how an encoder learns to restore pictures; `batch` counts crops of one update."""

    steps: int
    batch: int
    accumulate: int = 1
    optimiser: Optimiser
    augment: Augment


@dataclass(frozen=True, kw_only=True)
class RestoringRecipe(ClassRecipe):
    """Restoring first (`pretrain`), then the classes as every paper of an encoder learns them.

    Args:
        blocks: whose mean the pixels are restored from, counted from the last.
        everywhere: all pixels are asked for, not the hidden ones alone.
    """

    model: Mapping[str, Any] = field(default_factory=dict, metadata={CONFIG: PlainViTConfig})
    masking: GroupMasking
    blocks: int | list[int]
    everywhere: bool = False
    pretrain: Pretraining

    def scaled(self, steps: int | None, pretrained: bool) -> RestoringRecipe:
        """`steps` updates in all, shared between both stages in the same proportion; all of them for the second where
        the encoder is pre-trained."""
        if steps is None or pretrained:
            return replace(self, steps=steps or self.steps)
        tuned = max(1, round(steps * self.steps / (self.steps + self.pretrain.steps)))
        return replace(self, steps=tuned, pretrain=replace(self.pretrain, steps=max(1, steps - tuned)))

    def check(self) -> None:
        """See, without weights, that the backbone has those blocks, before anything is written.

        Raises:
            UserError: as `MaskedImageModel` and `MaskedImageModel.features`.
        """
        with torch.device("meta"):
            backbone = create(self.backbone, **self.model)
            eyes: Any = backbone.config
            picture = torch.empty(1, eyes.num_channels, eyes.image_size, eyes.image_size)
            self._model(backbone).features(picture)

    def _model(self, backbone: VisionBackbone) -> MaskedImageModel:
        blocks = [self.blocks] if isinstance(self.blocks, int) else self.blocks
        return MaskedImageModel.over(backbone, blocks=blocks, everywhere=self.everywhere)

    def restoring(self, backbone: VisionBackbone, source: Source, **places: int) -> Stage:
        """The stage that trains `backbone` to restore the pictures of `source`.

        Args:
            places: `seed`, `rank`, `world_size` and `workers` of the loader.
        """
        model = self._model(backbone)
        eyes: Any = backbone.config
        pixels, first = Pixels(eyes.image_size, **IMAGENET, augment=self.pretrain.augment), self.pretrain
        part = replace(self, batch=first.batch, accumulate=first.accumulate).part
        loader = masked_loader(source, pixels, self.masking, part, **places)
        return restoring_stage(model, loader, first.steps, optimiser=first.optimiser, accumulate=first.accumulate)


def open_both(data: Sequence[str]) -> tuple[Source, ClassesWorld]:
    """The pictures to restore and the classes to learn: one set for both, or one for each.

    Raises:
        UserError: more than two sets.
    """
    if len(data) > 2:
        raise UserError(f"--data takes pictures to restore and pictures with classes, not {len(data)} sets")
    world = open_pictures(data[-1:])
    return (open_folder(data[0]).source(TASK) if len(data) == 2 else world.source(world.tasks[0])), world
