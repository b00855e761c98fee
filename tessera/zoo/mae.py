"""`mini/mae`: a masked autoencoder (He et al. 2022) of drawn scenes and of the table's two cameras, as transformers'
`ViTMAEModel`. A quarter of a picture's patches is shown, and all of its pixels are asked for.

Shape legend: B pictures of 64 x 64 pixels, P = 64 patches, C = width of the encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTImageProcessorPil, ViTMAEConfig, ViTMAEForPreTraining

from tessera.data.images import Pixels, fit_square, open_image
from tessera.data.worlds.scenes.graph import SIZE
from tessera.data.worlds.tabletop.draw import hand_view, static_view
from tessera.data.worlds.tabletop.table import random_table
from tessera.evaluate.intervals import Estimate
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.vision.registry import create
from tessera.zoo.clip_data import patch_probes
from tessera.zoo.pictures import ScenePool, to_pixel_values
from tessera.zoo.recipe import Feed, Recipe

SCENES, TABLES, BATCH = 8_000, 4_000, 64
CONFIG: dict[str, Any] = {
    "image_size": SIZE, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 256, "decoder_hidden_size": 64, "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 256, "norm_pix_loss": True,
}  # fmt: skip


def table_pictures(seed: int, count: int) -> np.ndarray:
    """Both cameras' pictures of `count` tables, uint8 [2 * count, 64, 64, 3]."""
    rng = np.random.default_rng((seed, 2))
    tables = [random_table(rng) for _ in range(count)]
    hands = [np.asarray(fit_square(open_image(hand_view(one)), SIZE)) for one in tables]
    return np.stack([static_view(one) for one in tables] + hands)


def feed(pictures: np.ndarray, seed: int) -> Feed:
    """Batches {"pixel_values": float [BATCH, 3, 64, 64]}, half of them mirrored."""

    def make(rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = pictures[rng.integers(len(pictures), size=BATCH)]
        return {"pixel_values": to_pixel_values(chosen[:, :, ::-1].copy() if rng.random() < 0.5 else chosen)}

    return Feed(make, seed, held=f"scenes and tables {len(pictures)}")


def objective(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """Mean squared error of the hidden patches' pixels, each patch brought to mean 0 and variance 1."""
    pictures = batch["pixel_values"]
    return {"hidden pixels": (model(pictures).loss * len(pictures), len(pictures))}


def stage(seed: int, steps: int) -> Stage:
    """A new autoencoder and its pictures."""
    pictures = np.concatenate([ScenePool(SCENES, seed=seed).pictures, table_pictures(seed, TABLES)])
    return Stage(
        name="mae", model=ViTMAEForPreTraining(ViTMAEConfig(**CONFIG)), objective=objective,
        loader=feed(pictures, seed), steps=steps, optimiser=Optimiser(kind="muon", lr=1e-3),
    )  # fmt: skip


def save(model: nn.Module, folder: Path) -> None:
    """The encoder alone, in bf16, with its image processor."""
    model.vit.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[union-attr, operator]
    side, mean, std = {"height": SIZE, "width": SIZE}, list(Pixels.mean), list(Pixels.std)
    ViTImageProcessorPil(size=side, image_mean=mean, image_std=std).save_pretrained(folder)


@torch.no_grad()
def scores(folder: Path) -> dict[str, Estimate]:
    """Linear probes of one-object held-out combinations."""
    eyes = create(str(folder)).float()

    def patches(pictures: np.ndarray) -> np.ndarray:
        parts = np.array_split(pictures, max(1, len(pictures) // 100))
        return torch.cat([eyes(to_pixel_values(part)).tokens for part in parts]).numpy()

    return patch_probes(patches)


RECIPE = Recipe(
    name="mae", about="a masked autoencoder of 8-pixel patches that has seen scenes and the table", steps=4_000,
    stage=stage, save=save, scores=scores, gates={"probe colour": 0.8, "probe place": 0.8},
)  # fmt: skip
