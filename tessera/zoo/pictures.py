"""Pictures held in memory for the zoo's recipes: drawn once, visited in an order that depends on the seed alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tessera.data.images import Pixels
from tessera.data.worlds.scenes.draw import draw
from tessera.data.worlds.scenes.graph import Scene, Split, random_scene


def to_pixel_values(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], normalised as `Pixels` does."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
    return (pixels - torch.tensor(Pixels.mean).view(3, 1, 1)) / torch.tensor(Pixels.std).view(3, 1, 1)


@dataclass
class ScenePool:
    """`size` scenes of one split and their pictures, uint8 [size, 64, 64, 3]; scene i depends on (seed, i) alone.

    `counts` are the chances of 1, 2, ... objects.
    """

    size: int
    split: Split = "train"
    seed: int = 0
    counts: tuple[float, ...] = (0.3, 0.3, 0.2, 0.2)
    scenes: list[Scene] = field(init=False)
    pictures: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        code = ("train", "heldout").index(self.split)
        self.scenes = [
            random_scene(np.random.default_rng([self.seed, code, index]), self.split, self.counts)
            for index in range(self.size)
        ]
        self.pictures = np.stack([draw(scene) for scene in self.scenes])
