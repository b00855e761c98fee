"""What `mini/clip` is trained on and judged by: drawn scenes with right and wrong sentences, and named emoji. The
probes judge any encoder of patches."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tessera.data.sequence import IGNORED
from tessera.data.worlds import open_world
from tessera.data.worlds.scenes.captions import STYLES, canonical_caption, caption, hard_negative
from tessera.data.worlds.scenes.draw import object_masks
from tessera.data.worlds.scenes.graph import COLOURS, PLACES, SHAPES, SIZES, TEXTURES, Scene
from tessera.evaluate.intervals import Estimate
from tessera.evaluate.probes import linear_probe
from tessera.zoo.pictures import ScenePool, to_pixel_values
from tessera.zoo.recipe import Feed

ATTRIBUTES = {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "texture": TEXTURES}
POOL, VIEWS = 12_000, 3  # scenes, and drawings of each emoji, that are held in memory
SCENES, EMOJI = 40, 8  # of each in a batch
STYLE_CHANCES = {"hard": 0.5, "canonical": 0.15, "short": 0.175, "dense": 0.0875, "relational": 0.0875}


def patch_labels(scene: Scene, patch: int = 8, least: int = 6) -> np.ndarray:
    """What covers each patch, int8 [4, P]: index of colour, shape, size and texture, or the last class (background).

    A patch belongs to the object that covers most of it; one with 1 to `least` covered pixels is ignored (-100).
    """
    masks = object_masks(scene)
    side = masks.shape[1] // patch
    cover = masks.reshape(len(masks), side, patch, side, patch).sum(axis=(2, 4)).reshape(len(masks), -1)
    owner, most = cover.argmax(axis=0), cover.max(axis=0)
    labels = np.empty((len(ATTRIBUTES), cover.shape[1]), dtype=np.int8)
    for row, (attribute, names) in enumerate(ATTRIBUTES.items()):
        codes = np.array([names.index(getattr(thing, attribute)) for thing in scene.objects])
        labels[row] = np.where(most > least, codes[owner], np.where(most == 0, len(names), IGNORED))
    return labels


def emoji_pool(views: int = VIEWS) -> tuple[np.ndarray, list[str]]:
    """Training emoji, uint8 [n, 64, 64, 3], each in `views` drawings, with a name or alias for each."""
    world = open_world("emoji")
    pictures, names = [], []
    for one in world.split("train"):  # type: ignore[attr-defined]
        known = one.names("en")
        for view in range(views):
            pictures.append(np.asarray(world.picture(one, view)))  # type: ignore[attr-defined]
            names.append(known[view % len(known)])
    return np.stack(pictures), names


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], longest: int) -> Tensor:
    """Token ids int64 [n, L], padded to the longest of them and cut at `longest`, as CLIP cuts."""
    return tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt").input_ids


def _sentences(scene: Scene, rng: np.random.Generator) -> tuple[str, str | None]:
    """A true sentence about a scene and, half of the time, the same made wrong in one word."""
    style = str(rng.choice(list(STYLE_CHANCES), p=list(STYLE_CHANCES.values())))
    if style == "hard":
        return hard_negative(scene, rng)
    return caption(scene, rng, STYLES[STYLES.index(style)]), None


def feed(tokenizer: PreTrainedTokenizerFast, longest: int, seed: int) -> Feed:
    """Batches of 40 scenes and 8 emoji: pixel_values, captions, regions as `ClipPretraining.losses` takes them."""
    pool = ScenePool(POOL, seed=seed)
    labels = np.stack([patch_labels(scene) for scene in pool.scenes])
    emoji, names = emoji_pool()
    blank = np.full((EMOJI, *labels.shape[1:]), IGNORED, np.int8)

    def make(rng: np.random.Generator) -> dict[str, Tensor]:
        chosen, faces = rng.integers(POOL, size=SCENES), rng.integers(len(emoji), size=EMOJI)
        said = [_sentences(pool.scenes[index], rng) for index in chosen]
        right = [sentence for sentence, _ in said] + [names[index] for index in faces]
        wrong = [sentence for _, sentence in said if sentence]
        return {
            "pixel_values": to_pixel_values(np.concatenate([pool.pictures[chosen], emoji[faces]])),
            "captions": encode(tokenizer, right + wrong, longest),
            "regions": torch.from_numpy(np.concatenate([labels[chosen], blank]).astype(np.int64)),
        }

    return Feed(make, seed, held=f"scenes {POOL}, emoji {len(emoji)}")


def heldout_pool(size: int, objects: int | None = None) -> ScenePool:
    """Held-out scenes; `objects` fixes how many objects each has."""
    counts = {} if objects is None else {"counts": tuple(float(n + 1 == objects) for n in range(4))}
    return ScenePool(size, "heldout", seed=1, **counts)


def canonical(scenes: list[Scene]) -> list[str]:
    """The canonical caption of each scene."""
    return [canonical_caption(scene) for scene in scenes]


def patch_probes(patches: Callable[[np.ndarray], np.ndarray]) -> dict[str, Estimate]:
    """Linear probes on one-object pictures: of what it is, on the patches' mean and maximum; of where it is, on all
    patches side by side.

    Args:
        patches: pictures uint8 [n, 64, 64, 3] -> float [n, P, C].
    """
    seen, unseen = ScenePool(2000, seed=2, counts=(1.0, 0, 0, 0)), heldout_pool(500, objects=1)
    found = [patches(pool.pictures) for pool in (seen, unseen)]
    pooled = [np.concatenate([one.mean(axis=1), one.max(axis=1)], axis=1) for one in found]
    flat = [one.reshape(len(one), -1) for one in found]
    result = {}
    for attribute, names in {**ATTRIBUTES, "place": PLACES}.items():
        codes = [
            np.array([names.index(getattr(scene.objects[0], attribute)) for scene in pool.scenes])
            for pool in (seen, unseen)
        ]
        train, test = flat if attribute == "place" else pooled
        result[f"probe {attribute}"] = linear_probe(train, codes[0], test, codes[1])
    return result
