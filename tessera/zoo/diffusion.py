"""`mini/diffusion`: the Painter that turns words and picture tokens into 64-pixel pictures.

U-Net, Resampler and the image maps of the cross-attentions are trained together on cached latents and patch
states; autoencoder and CLIP are frozen. Words and picture tokens are left out at random, so that either paints alone
and guidance has something to lead away from; noise on both makes it paint from estimates.

Shape legend: B pictures; latents [B, 16, 16, 16]; patch states [B, 65, 192]; text states [B, 40, 192].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from tessera.data.worlds.scenes.captions import Style, canonical_caption, caption
from tessera.data.worlds.scenes.graph import Scene
from tessera.evaluate.intervals import Estimate, proportion
from tessera.evaluate.scene_match import matches
from tessera.evaluate.scene_reader import read_scene
from tessera.models.diffusion import adapter
from tessera.models.diffusion.aligned import align
from tessera.models.diffusion.painter import Painter
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.autoencoder import to_tensor
from tessera.zoo.clip_data import emoji_pool
from tessera.zoo.parts import locate
from tessera.zoo.pictures import ScenePool, to_pixel_values
from tessera.zoo.recipe import Feed, Recipe

POSITIONS = 12  # sine channels beside the latents: diffusers' U-Net has no other sense of place
TOKENS = 16
UNET = {
    "sample_size": 16,
    "in_channels": 16 + POSITIONS,
    "out_channels": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "mid_block_type": None,
    "block_out_channels": (64, 160),
    "layers_per_block": 1,
    "cross_attention_dim": 192,
    "norm_num_groups": 4,  # not 32 of two channels, which is nearly instance norm; its effect alone was not measured
    "resnet_time_scale_shift": "scale_shift",  # where all is noise, the noise can be turned off
    "attention_head_dim": 5,  # diffusers takes this for the number of heads
}
RESAMPLER = {
    "embed_dims": 192, "output_dims": 192, "hidden_dims": 192, "depth": 1,
    "dim_head": adapter.HEAD_WIDTH, "heads": 4, "num_queries": TOKENS,
}  # fmt: skip
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing", "clip_sample": False,
}  # fmt: skip
POOL, VIEWS = 9_000, 1  # scenes, and drawings of each emoji
COUNTS = (0.5, 0.3, 0.12, 0.08)  # chances of 1 to 4 objects: outlines are learned where there is little else
SCENES, EMOJI = 28, 4  # of each in a batch
DROP_TEXT, DROP_IMAGE, DROP_BOTH = 0.10, 0.18, 0.05
STYLE_CHANCES = {"canonical": 0.5, "short": 0.2, "dense": 0.15, "relational": 0.15}
PURE_NOISE = 0.3  # share of pictures
ROUGHEST = 0.25  # noise on conditions reaches up to this share of their spread, of which pictures differ by half


class Conditions:
    """The frozen CLIP as the painter's two condition encoders."""

    def __init__(self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase):
        self.clip, self.tokenizer = clip.eval().requires_grad_(False), tokenizer

    @torch.no_grad()
    def text(self, sentences: list[str]) -> Tensor:
        """Text states [B, 40, 192], padded and cut to the encoder's length."""
        longest = self.clip.config.text_config.max_position_embeddings
        words = self.tokenizer(
            sentences, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        return self.clip.text_model(words.input_ids).last_hidden_state

    @torch.no_grad()
    def patches(self, pictures: np.ndarray) -> Tensor:
        """Patch states [B, 65, 192] of pictures uint8 [B, 64, 64, 3]."""
        return self.clip.vision_model(to_pixel_values(pictures)).last_hidden_state

    @torch.no_grad()
    def null_patches(self) -> Tensor:
        """States of the all-zero input, [65, 192]."""
        return self.clip.vision_model(torch.zeros(1, 3, 64, 64)).last_hidden_state[0]


@dataclass(frozen=True)
class Cache:
    """Pictures as the painter sees them. Scenes come first, then named emoji.

    latents half [n, 16, 16, 16], patches half [n, 65, 192].
    """

    scenes: list[Scene]
    names: list[str]
    latents: Tensor
    patches: Tensor


@torch.no_grad()
def build_cache(conditions: Conditions, painter: Painter, pool: ScenePool, views: int = VIEWS) -> Cache:
    """Latents and patch states of a pool and of the training emoji."""
    emoji, names = emoji_pool(views)
    pictures = np.concatenate([pool.pictures, emoji])
    latents, patches = [], []
    for part in np.array_split(pictures, max(1, len(pictures) // 200)):
        latents.append(painter.encode(to_tensor(part)).half())
        patches.append(conditions.patches(part).half())
    return Cache(pool.scenes, names, torch.cat(latents), torch.cat(patches))


@torch.no_grad()
def _latent_statistics(vae: AutoencoderTiny, pictures: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean [Z] and divisor [Z] of scaled latents: channels of large spread keep a part of their lead.

    A picture's brightness is most of its latents' energy, but nothing that words or tokens have to fight for.
    """
    latents = vae.encode(to_tensor(pictures)).latents * vae.config.scaling_factor
    mean, spread = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    divisor = spread**0.6
    return mean, divisor * (spread / divisor).square().mean().sqrt()


def new_painter(vae: AutoencoderTiny, conditions: Conditions, pictures: np.ndarray) -> Painter:
    """A painter of random weights on a trained autoencoder; `pictures` are some to measure latents on."""
    unet = UNet2DConditionModel(**UNET)
    adapter.install(unet, TOKENS)
    painter = Painter(
        unet, vae, DDIMScheduler(**SCHEDULER), IPAdapterPlusImageProjection(**RESAMPLER),
        conditions.text([""])[0], conditions.null_patches(), *_latent_statistics(vae, pictures),
    )  # fmt: skip
    vae.requires_grad_(False)
    for module in (unet.conv_in, unet.conv_out, painter.image_projection):
        module.no_muon = True
    return painter


def feed(cache: Cache, conditions: Conditions, seed: int, steps: int) -> Feed:
    """Batches of latents, patches, text states, what to leave out (bool [B]) and noise levels [B]."""
    scenes, total = len(cache.scenes), len(cache.latents)
    styles: list[Style] = list(STYLE_CHANCES)  # type: ignore[arg-type]
    chances = list(STYLE_CHANCES.values())

    def say(index: int, rng: np.random.Generator) -> str:
        if index >= scenes:
            return cache.names[index - scenes]
        return caption(cache.scenes[index], rng, styles[int(rng.choice(len(styles), p=chances))])

    def make(rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = np.concatenate([rng.integers(scenes, size=SCENES), rng.integers(scenes, total, size=EMOJI)])
        dropped = rng.random(len(chosen))
        return {
            "latents": cache.latents[chosen].float(),
            "patches": cache.patches[chosen].float(),
            "text": conditions.text([say(int(index), rng) for index in chosen]),
            "no_text": torch.from_numpy(dropped < DROP_TEXT + DROP_BOTH),
            "no_image": torch.from_numpy((dropped >= DROP_TEXT) & (dropped < DROP_TEXT + DROP_BOTH + DROP_IMAGE)),
            "levels": noise_levels(made.step / steps, len(chosen), rng),
        }

    made = Feed(make, seed, held=f"painter scenes {scenes}, emoji {total - scenes}")
    return made


def noise_levels(progress: float, size: int, rng: np.random.Generator) -> Tensor:
    """log(noise / signal) of `size` training pictures, float [size]; infinity is noise alone.

    Brightness and places are spread over so many latents that they show through 20 times as much noise as signal:
    below that the painter reads them off the noisy latents and learns nothing from its conditions. Hence the share
    of pure noise, which is where sampling starts, and the high centre until outlines are all that is missing.
    """
    centre = 2.5 - 2.0 * min(1.0, max(0.0, (progress - 0.3) / 0.4))
    levels = torch.from_numpy(rng.normal(centre, 1.5, size)).float()
    return levels.masked_fill(torch.from_numpy(rng.random(size) < PURE_NOISE), torch.inf)


def _roughen(states: Tensor) -> Tensor:
    """Noise of a random strength a picture on half of the pictures' states [B, n, C]."""
    strength = ROUGHEST * torch.rand(len(states), 1, 1) * (torch.rand(len(states), 1, 1) < 0.5)
    return states + strength.to(states.device) * states.detach().std() * torch.randn_like(states)


def objective(painter: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """Squared error of the clean latents as predicted from noisy ones."""
    assert isinstance(painter, Painter)
    null_text, null_image = painter.null_conditions(len(batch["latents"]))
    image = torch.where(
        batch["no_image"][:, None, None], null_image, _roughen(painter.image_condition(batch["patches"]))
    )
    text = torch.where(batch["no_text"][:, None, None], null_text, _roughen(batch["text"]))
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    loss = painter.denoising_loss(batch["latents"], text, image, generator, batch["levels"])
    return {"denoising": loss}


def stage(seed: int, steps: int) -> Stage:
    """A new painter with an aligned start, and what it learns to paint."""
    clip = CLIPModel.from_pretrained(locate("mini/clip"), dtype=torch.float32)
    conditions = Conditions(clip, AutoTokenizer.from_pretrained(locate("mini/clip")))
    vae = AutoencoderTiny.from_pretrained(locate("mini/autoencoder"), torch_dtype=torch.float32)
    pool = ScenePool(POOL, seed=seed, counts=COUNTS)
    painter = new_painter(vae, conditions, pool.pictures[:500])
    cache = build_cache(conditions, painter, pool)
    return painter_stage(painter, cache, conditions, seed, steps)


def painter_stage(painter: Painter, cache: Cache, conditions: Conditions, seed: int, steps: int) -> Stage:
    """The stage that trains `painter` on `cache`."""
    some = torch.arange(0, len(cache.scenes), max(1, len(cache.scenes) // 256))
    align(painter, cache.patches[some].float(), cache.latents[some].float())
    painter.unet.to(memory_format=torch.channels_last)
    return Stage(
        name="diffusion", model=painter, objective=objective, loader=feed(cache, conditions, seed, steps),
        steps=steps, trainable=("unet.*", "image_projection.*"), average=0.998,
        optimiser=Optimiser(kind="muon", lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.0, warmup=0.02),
    )  # fmt: skip


def save(model: nn.Module, folder: Path) -> None:
    """The painter in bf16, in diffusers' sub-folder layout."""
    model.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[operator]


def paint_true(
    painter: Painter, conditions: Conditions, pool: ScenePool, image_scale: float = 1.0, steps: int = 20
) -> np.ndarray:
    """Pictures painted from the true conditions of a pool, canonical captions, uint8 [n, 64, 64, 3]."""
    painted = []
    for start in range(0, pool.size, 50):
        part = slice(start, start + 50)
        text = conditions.text([canonical_caption(scene) for scene in pool.scenes[part]])
        image = painter.image_condition(conditions.patches(pool.pictures[part]))
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(text))]
        painted.append(painter.paint(text, image, image_scale=image_scale, steps=steps, generator=seeds))
    return np.concatenate(painted)


def exact(pictures: np.ndarray, scenes: list[Scene]) -> int:
    """How many pictures show exactly their scene's objects, by colour, shape and place."""
    fields = ("colour", "shape", "place")
    return sum(matches(read_scene(picture), scene, fields) for picture, scene in zip(pictures, scenes, strict=True))


@torch.no_grad()
def scores(folder: Path, pictures: int = 200) -> dict[str, Estimate]:
    """The scene reader's verdict on pictures painted from true conditions of held-out combinations."""
    clip = CLIPModel.from_pretrained(locate("mini/clip"), dtype=torch.float32)
    conditions = Conditions(clip, AutoTokenizer.from_pretrained(locate("mini/clip")))
    painter = Painter.from_pretrained(folder)
    found = {}
    for number, name in ((1, "one object"), (2, "two objects")):
        counts = tuple(float(n + 1 == number) for n in range(4))
        pool = ScenePool(pictures, "heldout", seed=1, counts=counts)
        painted = paint_true(painter, conditions, pool)
        found[f"{name} painted exactly"] = proportion(exact(painted, pool.scenes), pictures)
    return found


RECIPE = Recipe(
    name="diffusion", about="a painter of 64-pixel pictures from words and picture tokens", steps=6000,
    stage=stage, save=save, scores=scores,
    gates={"one object painted exactly": 0.95, "two objects painted exactly": 0.85},
)  # fmt: skip
