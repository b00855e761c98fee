"""`mini/diffusion`: the Painter that turns words and picture tokens into 64-pixel pictures.

The Resampler's aligned start already packs what the first patch states say about the latents into 16 tokens, and
stays as it is; U-Net and cross-attentions are trained on cached latents and tokens, autoencoder and CLIP are frozen.
Words and picture tokens are left out at random, so that either paints alone and guidance has something to lead away
from. A model that estimates the tokens by squared error from a sentence gives their mean over all pictures that the
sentence fits, and learns outlines last, as they are little of the tokens' spread. So a few channels of a token hold
what CLIP's last states say of shapes and sizes, which is a large part of their spread; and a part of the pictures is
painted from the mean over other drawings of the same things, in most of which outlines are open, so that it is those
channels and the words that tell them. A second stage paints from such means more often than not: what an outline is
made of is in few latents, and takes as many pictures to learn as all the rest. A third learns to finish edges.

Shape legend: B pictures; latents [B, 16, 16, 16]; patch states [B, 65, 384]; picture tokens [B, 16, 192]; text states
[B, 40, 192].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel, PreTrainedTokenizerBase

from tessera.data.worlds.scenes.captions import Style, canonical_caption, caption
from tessera.data.worlds.scenes.draw import draw, object_masks
from tessera.data.worlds.scenes.graph import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    is_heldout,
    place_object,
    redrawn,
    scene_of,
)
from tessera.evaluate.intervals import Estimate, proportion
from tessera.evaluate.scene_match import matches
from tessera.evaluate.scene_reader import read_scene
from tessera.layers.aligning import QUARTERS
from tessera.models.diffusion import adapter
from tessera.models.diffusion.aligned import align
from tessera.models.diffusion.painter import Painter
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.autoencoder import to_tensor
from tessera.zoo.clip_data import emoji_pool
from tessera.zoo.foundation import MINI_LAYERS, alike, read_layers
from tessera.zoo.parts import locate
from tessera.zoo.pictures import ScenePool, to_pixel_values
from tessera.zoo.recipe import Feed, Recipe

POSITIONS = 48  # sine channels beside the latents: diffusers' U-Net has no other sense of place
TOKENS = 16
UNET = {
    # 2 x 2 latents at a time, which are the 8 x 8 pixels of one CLIP patch: so what a token says of a patch can reach
    # each of its latents by a linear map, where a U-Net on single latents must first learn to tell the four apart.
    "sample_size": 8,
    "in_channels": 64 + POSITIONS,
    "out_channels": 64,
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "mid_block_type": None,
    "block_out_channels": (176,),
    "layers_per_block": 1,
    "cross_attention_dim": 192,
    "norm_num_groups": 4,  # not 32 of few channels, which is nearly instance norm; its effect alone was not measured
    "resnet_time_scale_shift": "scale_shift",  # where all is noise, the noise can be turned off
    "attention_head_dim": 4,  # diffusers takes this for the number of heads: one for each quarter of a token
}
RESAMPLER = {
    "embed_dims": 384, "output_dims": 192, "hidden_dims": 384, "depth": 1,
    "dim_head": adapter.HEAD_WIDTH, "heads": 4, "num_queries": TOKENS, "ffn_ratio": 1,
}  # fmt: skip
MEANT = SHAPES + SIZES  # what a patch's own words are: the last states tell them, the first ones only outlines
RANK = 7  # of the 48 contents of a patch; every thing has a shape and a size, so that one of the 8 follows
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing", "clip_sample": False,
}  # fmt: skip
POOL, VIEWS = 8_000, 1  # scenes, and drawings of each emoji
COUNTS = (0.4, 0.3, 0.17, 0.13)  # chances of 1 to 4 objects: outlines are learned where there is little else
REDRAWN = 4  # other drawings of a scene's things that a mean is taken over
OPENED = 24  # drawings of one thing that such a mean is taken over
FAINTEST = 0.4  # least share of a mean's lead over the mean of all pictures: estimates by squared error shrink so
SCENES, EMOJI = 30, 2  # of each in a batch
DROP_TEXT, DROP_IMAGE, DROP_BOTH = 0.15, 0.10, 0.05
STYLE_CHANCES = {"canonical": 0.5, "short": 0.2, "dense": 0.15, "relational": 0.15}
BACKGROUND = 0.1  # weight of a place that no object covers: grain, which nothing tells, is most of the error there
ROUGHEST = 0.25  # noise on conditions reaches up to this share of their spread, of which pictures differ by half


@dataclass(frozen=True)
class Course:
    """What a stage paints from.

    Args:
        own: chance of a picture's own tokens.
        mean: chance of the mean over other drawings; else a blend of the two.
        open: share of scenes whose mean leaves the outlines open.
        gradual: from noise alone and own tokens at first, to the rest: for a painter that knows nothing.
        pure: share of pictures that are noise alone, in the end.
        centre: mean of log(noise / signal) of the others, in the end.
        spread: its standard deviation.
    """

    own: float
    mean: float
    open: float
    gradual: bool
    pure: float
    centre: float
    spread: float


FIRST = Course(own=0.45, mean=0.35, open=0.6, gradual=True, pure=0.3, centre=0.5, spread=1.5)
# Words and told channels lower a first painter's error most where noise is 3 to 12 times the signal (by 0.06 of 0.5).
OUTLINES = Course(own=0.3, mean=0.5, open=0.9, gradual=False, pure=0.2, centre=1.5, spread=0.9)
# What is then wrong are edges, where a stripe ends at an outline: they are told where there is less noise than signal,
# which half of the steps of painting see and of the second stage's pictures one in twenty.
EDGES = Course(own=0.45, mean=0.35, open=0.6, gradual=False, pure=0.1, centre=0.0, spread=1.3)
SHARES = (3, 7, 3)  # of the steps


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
        """Patch states [B, 65, 384] of pictures uint8 [B, 64, 64, 3]."""
        return self._states(to_pixel_values(pictures))

    @torch.no_grad()
    def null_patches(self) -> Tensor:
        """States of the all-zero input, [65, 384]."""
        return self._states(torch.zeros(1, 3, 64, 64))[0]

    def _states(self, pixel_values: Tensor) -> Tensor:
        return alike(read_layers(self.clip.vision_model, pixel_values, MINI_LAYERS), len(MINI_LAYERS))


@dataclass(frozen=True)
class Cache:
    """Pictures as the painter sees them. Scenes come first, then named emoji.

    latents half [n, 16, 16, 16]; tokens half [n, 16, 192]; means half [n, 16, 192], of other drawings of the same;
    opened half [n, 16, 192], likewise with the outlines open; weights half [n, 16, 16], how much each place counts.
    """

    scenes: list[Scene]
    names: list[str]
    latents: Tensor
    tokens: Tensor
    means: Tensor
    opened: Tensor
    weights: Tensor


@torch.no_grad()
def build_cache(conditions: Conditions, painter: Painter, pool: ScenePool, views: int = VIEWS, seed: int = 0) -> Cache:
    """Latents and picture tokens of a pool and of the training emoji, by an aligned painter."""
    emoji, names = emoji_pool(views)
    pictures = np.concatenate([pool.pictures, emoji])
    parts = np.array_split(pictures, max(1, len(pictures) // 200))
    latents = torch.cat([painter.encode(to_tensor(part)).half() for part in parts])
    tokens = torch.cat([painter.image_condition(conditions.patches(part)).half() for part in parts])
    outlines = OpenOutlines(conditions, painter, np.random.default_rng((seed, pool.size)))
    means = torch.stack([_mean_tokens(conditions, painter, scene, (seed, i)) for i, scene in enumerate(pool.scenes)])
    opened = torch.where(told(), means, torch.stack([outlines.mean(scene) for scene in pool.scenes]))
    weights = torch.stack([_weights(scene) for scene in pool.scenes])
    everywhere = torch.full((len(names), *weights.shape[1:]), float(weights.mean())).half()
    return Cache(
        pool.scenes, names, latents, tokens, torch.cat([means, tokens[pool.size :]]),
        torch.cat([opened, tokens[pool.size :]]), torch.cat([weights, everywhere]),
    )  # fmt: skip


def _weights(scene: Scene) -> Tensor:
    """1 where an object covers a cell or touches its neighbour, less elsewhere, half [16, 16]."""
    covered = torch.from_numpy(object_masks(scene).any(axis=0)).float()
    near = nn.functional.max_pool2d(covered[None], kernel_size=8, stride=4, padding=2)[0]
    return torch.lerp(torch.tensor(BACKGROUND), torch.tensor(1.0), near).half()


def _mean_tokens(conditions: Conditions, painter: Painter, scene: Scene, seed: tuple[int, int]) -> Tensor:
    """Mean picture tokens, half [16, 192], of other drawings of a scene: of what a canonical caption leaves open, and
    every second time of what a short one does."""
    rng = np.random.default_rng(seed)
    others = [redrawn(scene, rng, keep=("size", "texture") if seed[1] % 2 else ()) for _ in range(REDRAWN)]
    states = conditions.patches(np.stack([draw(other) for other in others]))
    return painter.image_condition(states).mean(dim=0).half()


def told() -> Tensor:
    """Which channels of a token hold the words of its four patches, bool [192]."""
    return torch.arange(RESAMPLER["output_dims"]) % (RESAMPLER["output_dims"] // QUARTERS) < RANK


class OpenOutlines:
    """Mean picture tokens of scenes of which colours, sizes, textures and places are known, but no shape.

    Tokens are nearly linear in the picture and things seldom touch, so that what each adds to an empty picture is
    measured once, over shapes of the training split, and summed.
    """

    @torch.no_grad()
    def __init__(self, conditions: Conditions, painter: Painter, rng: np.random.Generator):
        def mean(scenes: list[Scene]) -> Tensor:
            pictures = np.stack([draw(scene) for scene in scenes])
            return painter.image_condition(conditions.patches(pictures)).mean(dim=0)

        self.empty = mean([scene_of((), rng) for _ in range(OPENED * len(PLACES))])
        self.added = {}
        for colour, size, texture, place in product(COLOURS, SIZES, TEXTURES, PLACES):
            shapes = [shape for shape in SHAPES if not is_heldout(colour, shape, place)]
            things = [
                place_object(rng, colour, shapes[i % len(shapes)], place, size, texture) for i in range(OPENED)
            ]  # fmt: skip
            self.added[colour, size, texture, place] = mean([scene_of((thing,), rng) for thing in things]) - self.empty

    def mean(self, scene: Scene) -> Tensor:
        """Tokens, half [16, 192]."""
        said = [self.added[thing.colour, thing.size, thing.texture, thing.place] for thing in scene.objects]
        return torch.stack([self.empty, *said]).sum(dim=0).half()


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
    for module in (unet.conv_in, unet.conv_out):
        module.no_muon = True
    return painter


def feed(cache: Cache, conditions: Conditions, seed: int, steps: int, course: Course = FIRST) -> Feed:
    """Batches of latents, picture tokens, text states, what to leave out (bool [B]) and noise levels [B]."""
    scenes, total = len(cache.scenes), len(cache.latents)
    styles: list[Style] = list(STYLE_CHANCES)  # type: ignore[arg-type]
    chances = list(STYLE_CHANCES.values())

    def say(index: int, rng: np.random.Generator) -> str:
        if index >= scenes:
            return cache.names[index - scenes]
        return caption(cache.scenes[index], rng, styles[int(rng.choice(len(styles), p=chances))])

    def make(rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = np.concatenate([rng.integers(scenes, size=SCENES), rng.integers(scenes, total, size=EMOJI)])
        progress = made.step / steps if course.gradual else 1.0
        late = ramp(progress, 0.2, 0.5)
        dropped, spared = rng.random(len(chosen)), rng.random(len(chosen)) >= late
        no_image = (dropped >= DROP_TEXT) & (dropped < DROP_TEXT + DROP_BOTH + DROP_IMAGE) & ~spared
        return {
            "latents": cache.latents[chosen].float(),
            "image": _blend(cache.tokens[chosen].float(), faint(means[chosen].float(), rng), late, rng, course),
            "weights": cache.weights[chosen].float(),
            "text": conditions.text([say(int(index), rng) for index in chosen]),
            "no_text": torch.from_numpy(dropped < DROP_TEXT + DROP_BOTH),
            "no_image": torch.from_numpy(no_image),
            "levels": noise_levels(progress, len(chosen), rng, course),
        }

    def faint(means: Tensor, rng: np.random.Generator) -> Tensor:
        lead = torch.from_numpy(rng.uniform(FAINTEST, 1.0, len(means))).float()
        return torch.lerp(average, means, lead[:, None, None])

    is_open = torch.arange(total) < int(course.open * scenes)
    means = torch.where(is_open[:, None, None], cache.opened, cache.means)
    average = means[:scenes].float().mean(dim=0)
    made = Feed(make, seed, held=f"painter scenes {scenes}, emoji {total - scenes}")
    return made


def ramp(progress: float, start: float, end: float) -> float:
    """0 until `start`, then evenly up to 1 at `end`."""
    return min(1.0, max(0.0, (progress - start) / (end - start)))


def _blend(tokens: Tensor, means: Tensor, late: float, rng: np.random.Generator, course: Course) -> Tensor:
    """Each picture's own tokens, or (at the share `late` of their chances) the mean's or what lies between,
    [B, 16, 192]."""
    kind, between = rng.random(len(tokens)), rng.random(len(tokens))
    kind = np.where(rng.random(len(tokens)) < late, kind, 0.0)
    own = np.where(kind < course.own, 1.0, np.where(kind < course.own + course.mean, 0.0, between))
    return torch.lerp(means, tokens, torch.from_numpy(own).float()[:, None, None])


def noise_levels(progress: float, size: int, rng: np.random.Generator, course: Course = FIRST) -> Tensor:
    """log(noise / signal) of `size` training pictures, float [size]; infinity is noise alone.

    What conditions mean is learned many times faster from noise alone, where nothing else tells anything: so training
    starts with that, with every picture's own tokens. Brightness and places are spread over so many latents that they
    show through 20 times as much noise as signal; below that the painter reads them off the noisy latents. Hence the
    high centre of the other levels until outlines are all that is missing.
    """
    centre = 2.5 + (course.centre - 2.5) * ramp(progress, 0.3, 0.7)
    levels = torch.from_numpy(rng.normal(centre, course.spread, size)).float()
    share = 1.0 + (course.pure - 1.0) * ramp(progress, 0.2, 0.5)
    return levels.masked_fill(torch.from_numpy(rng.random(size) < share), torch.inf)


def _roughen(states: Tensor) -> Tensor:
    """Noise of a random strength a picture on half of the pictures' states [B, n, C]."""
    strength = ROUGHEST * torch.rand(len(states), 1, 1) * (torch.rand(len(states), 1, 1) < 0.5)
    return states + strength.to(states.device) * states.detach().std() * torch.randn_like(states)


def objective(painter: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """Squared error of the clean latents as predicted from noisy ones."""
    assert isinstance(painter, Painter)
    null_text, null_image = painter.null_conditions(len(batch["latents"]))
    image = torch.where(batch["no_image"][:, None, None], null_image, _roughen(batch["image"]))
    text = torch.where(batch["no_text"][:, None, None], null_text, _roughen(batch["text"]))
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    weights = batch["weights"] / batch["weights"].mean()
    loss = painter.denoising_loss(batch["latents"], text, image, generator, batch["levels"], weights)
    return {"denoising": loss}


def stages(seed: int, steps: int) -> Iterator[Stage]:
    """A new painter with an aligned start learns to paint what tokens tell, then what they leave to words."""
    clip = CLIPModel.from_pretrained(locate("mini/clip"), dtype=torch.float32)
    conditions = Conditions(clip, AutoTokenizer.from_pretrained(locate("mini/clip")))
    vae = AutoencoderTiny.from_pretrained(locate("mini/autoencoder"), torch_dtype=torch.float32)
    pool = ScenePool(POOL, seed=seed, counts=COUNTS)
    painter = new_painter(vae, conditions, pool.pictures[:500])
    start(painter, conditions, pool)
    cache = build_cache(conditions, painter, pool, seed=seed)
    first, second = (round(steps * share / sum(SHARES)) for share in SHARES[:2])
    yield painter_stage(painter, cache, conditions, seed, first)
    gentler = Optimiser(kind="muon", lr=1e-3, muon_lr=0.014, betas=(0.9, 0.98), weight_decay=0.0, warmup=0.02)
    stage = painter_stage(painter, cache, conditions, seed + 1, second, OUTLINES)
    yield replace(stage, name="outlines", optimiser=gentler)
    stage = painter_stage(painter, cache, conditions, seed + 2, steps - first - second, EDGES)
    yield replace(stage, name="edges", optimiser=gentler)


@torch.no_grad()
def start(painter: Painter, conditions: Conditions, pool: ScenePool, pictures: int = 500) -> None:
    """The aligned start, measured on some pictures of a pool."""
    some = pool.pictures[:pictures]
    meant = torch.stack([_meant(scene) for scene in pool.scenes[:pictures]])
    align(painter, conditions.patches(some), painter.encode(to_tensor(some)), meant, RANK)
    for name, module in painter.unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.processor")):
            module.no_muon = True  # whole-matrix steps would soon undo what the start knows


def _meant(scene: Scene) -> Tensor:
    """How much of each patch is covered by things of each of MEANT, float [64, 8]."""
    covered = torch.from_numpy(object_masks(scene)).float()
    shares = nn.functional.avg_pool2d(covered, 8).flatten(1)  # [K, 64]
    words = torch.tensor([[float(word in (thing.shape, thing.size)) for word in MEANT] for thing in scene.objects])
    return shares.T @ words


def painter_stage(
    painter: Painter, cache: Cache, conditions: Conditions, seed: int, steps: int, course: Course = FIRST
) -> Stage:
    """The stage that trains `painter` on `cache`."""
    painter.unet.to(memory_format=torch.channels_last)
    return Stage(
        name="diffusion", model=painter, objective=objective, loader=feed(cache, conditions, seed, steps, course),
        steps=steps, trainable=("unet.*",), average=0.998,
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
    name="diffusion", about="a painter of 64-pixel pictures from words and picture tokens", steps=14_300,
    stage=stages, save=save, scores=scores,
    gates={"one object painted exactly": 0.95, "two objects painted exactly": 0.85},
)  # fmt: skip
