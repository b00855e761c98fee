"""`mini/autoencoder`: diffusers' `AutoencoderTiny`, 64-pixel pictures to 16 x 16 x 16 latents and back.

Trained on drawn scenes, emoji and loose shapes. Half of the way is given, not learned: the encoder starts as the
principal components of 4 x 4 pixel patches, carried through its strided convolutions unchanged.

Shape legend: B pictures, H = W pixels (64, or 32 for training crops), C = 48 channels, Z = 16 latent channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image as PIL
from PIL import ImageDraw
from torch import Tensor, nn

from tessera.data.worlds import open_world
from tessera.data.worlds.scenes.draw import draw
from tessera.data.worlds.scenes.graph import SIZE, Split, random_scene
from tessera.evaluate.intervals import Estimate, bootstrap_mean, proportion
from tessera.evaluate.scene_match import matches
from tessera.evaluate.scene_reader import read_scene
from tessera.models.diffusion.painter import save_autoencoder
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.pictures import ScenePool
from tessera.zoo.recipe import Feed, Recipe

CHANNELS, LATENTS, PATCH = 48, 16, 4
POOL, BATCH, CROP = 20_000, 16, 32
CONFIG = {
    "encoder_block_out_channels": (CHANNELS,) * 3,
    "decoder_block_out_channels": (CHANNELS,) * 3,
    "num_encoder_blocks": (0, 1, 2),
    "num_decoder_blocks": (2, 1, 0),  # every block at 64 x 64 would cost as much as all of these together
    "latent_channels": LATENTS,
}
WEIGHTS = {"squared": 4.0, "absolute": 0.3}  # absolute error alone favours the background
LATENT_NOISE = 0.05  # in latents of unit scale: the decoder meets latents that a painter got slightly wrong


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1], channels last in memory."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pictures(values: Tensor) -> np.ndarray:
    """Float [B, 3, H, W] in [-1, 1] to uint8 [B, H, W, 3]."""
    return values.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


# ---- data


def scene_pictures(rng: np.random.Generator, count: int, split: Split = "train") -> np.ndarray:
    """Drawn scenes, uint8 [count, 64, 64, 3]."""
    return np.stack([draw(random_scene(rng, split)) for _ in range(count)])


def _random_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, size=3).tolist()
    return red, green, blue


def loose_picture(rng: np.random.Generator) -> np.ndarray:
    """Anything: a few shapes in any colours over a smooth random field, uint8 [64, 64, 3]. For generality."""
    grain = int(rng.choice([1, 2, 4, 8, 16]))
    field = PIL.fromarray(rng.integers(0, 256, size=(grain, grain, 3), dtype=np.uint8))
    canvas = field.resize((4 * SIZE, 4 * SIZE), PIL.Resampling.BICUBIC)
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 9))):
        corners = [tuple(p) for p in rng.integers(-20, 4 * SIZE + 20, size=(int(rng.integers(2, 6)), 2)).tolist()]
        colour = _random_colour(rng)
        if len(corners) == 2:
            (x0, y0), (x1, y1) = corners
            pen.ellipse((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=colour)
        elif len(corners) == 3:
            pen.line(corners, fill=colour, width=int(rng.integers(4, 20)))
        else:
            pen.polygon(corners, fill=colour)
    return np.asarray(canvas.resize((SIZE, SIZE), PIL.Resampling.BOX))


def emoji_pictures(rng: np.random.Generator, count: int, split: Split = "train") -> np.ndarray:
    """Emoji of one split on plain backgrounds, uint8 [count, 64, 64, 3].

    Raises:
        UserError: this machine has no colour emoji font.
    """
    source = open_world("emoji").source("pairs", split)
    chosen = rng.integers(len(source), size=count)
    return np.stack([np.asarray(source[int(index)].images[0].pil()) for index in chosen])


def picture_pool(seed: int, count: int) -> np.ndarray:
    """Training pictures, uint8 [count, 64, 64, 3]: 55 % scenes, 25 % emoji, the rest loose shapes."""
    rng = np.random.default_rng((seed, 1))
    scenes, faces = int(0.55 * count), int(0.25 * count)
    loose = np.stack([loose_picture(rng) for _ in range(count - scenes - faces)])
    return np.concatenate([scene_pictures(rng, scenes), emoji_pictures(rng, faces), loose])


def feed(pictures: np.ndarray, seed: int) -> Feed:
    """Random crops of `pictures`, half of the batches mirrored: {"pictures": float [BATCH, 3, CROP, CROP]}."""

    def make(rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = rng.integers(len(pictures), size=BATCH)
        tops, lefts = rng.integers(0, SIZE - CROP + 1, size=(2, BATCH))
        crops = np.stack([
            pictures[i, y : y + CROP, x : x + CROP] for i, y, x in zip(chosen, tops, lefts, strict=True)
        ])  # fmt: skip
        return {"pictures": to_tensor(crops[:, :, ::-1].copy() if rng.random() < 0.5 else crops)}

    return Feed(make, seed, held=f"autoencoder pictures {len(pictures)}")


# ---- model


def _components(pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """Leading principal components of PATCH x PATCH pixel patches in [0, 1], and their mean.

    Components [Z, 2, 2, 2, 2, 3] with axes (coarse y, coarse x, fine y, fine x, colour), scaled by the inverse
    square root of their spread: half way to whitened, so that fine detail counts for more without drowning in noise.
    """
    half = PATCH // 2
    n, high, wide, _ = pictures.shape
    tiles = pictures.reshape(n, high // PATCH, 2, half, wide // PATCH, 2, half, 3)  # n, Y, cy, fy, X, cx, fx, c
    flat = tiles.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, PATCH * PATCH * 3) / 255
    mean = flat.mean(axis=0)
    spread, basis = np.linalg.eigh(np.cov(flat - mean, rowvar=False))
    spread, basis = spread[::-1][:LATENTS], basis[:, ::-1][:, :LATENTS]
    scaled = basis.T / np.sqrt(np.sqrt(spread))[:, None]
    scaled /= np.sqrt(np.mean(np.sqrt(spread)))  # mean variance of the latents is then one
    shape = (half, half, half, half, 3)
    return torch.from_numpy(scaled.reshape(LATENTS, *shape)).float(), torch.from_numpy(mean.reshape(shape)).float()


def _silence_blocks(layers: Any) -> None:
    """Let every residual block start as the identity (of positive inputs)."""
    for block in layers:
        if hasattr(block, "conv"):
            nn.init.zeros_(block.conv[-1].weight)
            nn.init.zeros_(block.conv[-1].bias)


@torch.no_grad()
def build(pictures: np.ndarray) -> AutoencoderTiny:
    """An untrained autoencoder whose encoder gives the principal components of `pictures` (uint8 [n, 64, 64, 3])."""
    model = AutoencoderTiny(**CONFIG)
    components, mean = _components(pictures)
    _silence_blocks(model.encoder.layers)
    _silence_blocks(model.decoder.layers)
    convolutions: list[Any] = [layer for layer in model.encoder.layers if isinstance(layer, nn.Conv2d)]
    first, fine, coarse, last = convolutions
    nn.init.zeros_(first.bias)
    for convolution in convolutions:
        convolution.weight.mul_(0.1)  # a little of the random start stays, so that the idle channels can learn
    colours = torch.arange(3)
    first.weight[:3] = 0
    first.weight[colours, colours, 1, 1] = 1
    # A stride-2 kernel of 3 covers offsets -1, 0, 1: taps 1 and 2 hold the 2 x 2 pixels of one cell.
    fine.weight[:12] = 0
    coarse.weight[:48] = 0
    for y in range(2):
        for x in range(2):
            cell = 2 * y + x
            for channel in range(3):
                fine.weight[3 * cell + channel, channel, 1 + y, 1 + x] = 1
            for channel in range(12):
                coarse.weight[12 * cell + channel, channel, 1 + y, 1 + x] = 1
    last.weight.zero_()
    last.weight[:, : PATCH * PATCH * 3, 1, 1] = components.reshape(LATENTS, -1)
    last.bias.copy_(-(components * mean).flatten(1).sum(dim=1))
    return model.to(memory_format=torch.channels_last)


def objective(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """Squared and absolute error of the reconstruction, each as (sum, number of values).

    Args:
        batch: pictures [B, 3, H, W] in [-1, 1]; errors are measured on the scale [0, 1].
    """
    pictures = batch["pictures"]
    latents = model.encode(pictures).latents  # type: ignore[operator]
    noisy = latents + LATENT_NOISE * torch.randn_like(latents)
    error = (model.decode(noisy).sample - pictures) / 2  # type: ignore[operator]
    return {"squared": (error.square().sum(), error.numel()), "absolute": (error.abs().sum(), error.numel())}


@torch.no_grad()
def measure_scale(model: AutoencoderTiny, pictures: np.ndarray) -> None:
    """Write into the config what brings the latents of `pictures` to unit spread."""
    latents = torch.cat([model.encode(to_tensor(part)).latents for part in np.array_split(pictures, 8)])
    model.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))


@torch.no_grad()
def reconstruct(model: AutoencoderTiny, pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 [n, 64, 64, 3] through the latents and back."""
    parts = np.array_split(pictures, max(1, len(pictures) // 32))
    return np.concatenate([to_pictures(model.decode(model.encode(to_tensor(p)).latents).sample) for p in parts])


def psnr(model: AutoencoderTiny, pictures: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each reconstruction in decibels, [n]."""
    error = (reconstruct(model, pictures).astype(np.float64) - pictures) / 255
    return -10 * np.log10((error**2).mean(axis=(1, 2, 3)) + 1e-8)


# ---- the recipe


def stage(seed: int, steps: int) -> Stage:
    """A new autoencoder and its pictures."""
    pictures = picture_pool(seed, POOL)
    return Stage(
        name="autoencoder", model=build(pictures[:: POOL // 500]), objective=objective,
        loader=feed(pictures, seed), steps=steps, weights=WEIGHTS,
        optimiser=Optimiser(lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0, warmup=0.02, floor=0.0),
    )  # fmt: skip


def save(model: nn.Module, folder: Path) -> None:
    """Weights in bf16 and the configuration, with the latents' scale, as diffusers publishes them."""
    measure_scale(model, scene_pictures(np.random.default_rng(6), 256))
    save_autoencoder(model.to(torch.bfloat16), folder)


def scores(folder: Path, pictures: int = 500) -> dict[str, Estimate]:
    """The scene reader's verdict on reconstructions of held-out scenes, and the error on scenes and emoji."""
    model = AutoencoderTiny.from_pretrained(folder, torch_dtype=torch.float32).eval()
    pool = ScenePool(pictures, "heldout", seed=1)
    exact = [
        matches(read_scene(picture), scene, ("colour", "shape", "place"))
        for picture, scene in zip(reconstruct(model, pool.pictures), pool.scenes, strict=True)
    ]
    emoji = emoji_pictures(np.random.default_rng(7), pictures // 5, "heldout")
    return {
        "scenes read exactly after the autoencoder": proportion(sum(exact), len(exact)),
        "held-out scenes, PSNR in dB": bootstrap_mean(psnr(model, pool.pictures)),
        "held-out emoji, PSNR in dB": bootstrap_mean(psnr(model, emoji)),
    }


RECIPE = Recipe(
    name="autoencoder", about="an AutoencoderTiny from 64-pixel pictures to 16 x 16 x 16 latents", steps=5000,
    stage=stage, save=save, scores=scores, gates={"scenes read exactly after the autoencoder": 0.98},
)  # fmt: skip
