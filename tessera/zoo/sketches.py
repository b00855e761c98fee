"""Sketches: scenes told in words, a few words at each place of a coarse raster.

A small language model learns to bind what is said of a thing to its place, to count and to compare only from many more
sentences than a demonstration has time for, and pictures cost far more than words. So `mini/lm` reads and writes
sketches where VL-GPT will read and write pictures: each of the 16 positions of a picture is then a distribution over
words, which goes in as the mean of their embeddings and is learned by cross-entropy. No picture is looked at.

Shape legend: M sketches; Q = 4 x 4 places; W words that a sketch is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tessera.data.sample import Image
from tessera.data.worlds.scenes.draw import object_masks
from tessera.data.worlds.scenes.graph import COLOURS, SHAPES, SIZES, TEXTURES, Scene
from tessera.errors import BadSample

SIDE = 4  # places along each side
PLACES = SIDE * SIDE
NOTHING = "nothing"
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
WORDS = (NOTHING, *COLOURS, *SHAPES, *SIZES, *TEXTURES, *ROWS, *COLUMNS)
FULL = 0.25  # share of a place that a thing must cover to fill it
WHERE = 0.3  # share of the words that say which place it is


def scene_of(image: Image) -> Scene:
    """The scene that a picture of the embedded world shows, without drawing it.

    Raises:
        BadSample: the picture is none of that world.
    """
    source = image.source
    if isinstance(source, partial) and source.args and isinstance(source.args[0], Scene):
        return source.args[0]
    raise BadSample("only a picture of the scenes world can be told as a sketch")


def sketch(scene: Scene) -> np.ndarray:
    """A scene as a distribution over WORDS at each place, float32 [Q, W]: what covers it, by how much, and which place
    it is."""
    told = np.zeros((PLACES, len(WORDS)), np.float32)
    cell = object_masks(scene).shape[-1] // SIDE
    masks = object_masks(scene).reshape(len(scene.objects), SIDE, cell, SIDE, cell)
    covered = np.minimum(masks.mean(axis=(2, 4)).reshape(len(scene.objects), PLACES) / FULL, 1.0)
    for thing, share in zip(scene.objects, covered, strict=True):
        for word in (thing.colour, thing.shape, thing.size, thing.texture):
            told[:, WORDS.index(word)] += share / 4
    told[:, 0] = np.maximum(0.0, 1.0 - covered.sum(axis=0))
    return (1 - WHERE) * told / told.sum(axis=1, keepdims=True) + WHERE * _WHERE


def _where() -> np.ndarray:
    """What is said of each place itself, [Q, W]: how much of it lies in each third of the picture, up and across."""
    edges = np.arange(SIDE + 1) / SIDE
    thirds = np.arange(4) / 3
    shared = np.minimum(edges[1:, None], thirds[1:]) - np.maximum(edges[:-1, None], thirds[:-1])
    shares = np.maximum(shared, 0.0) * SIDE / 2  # [SIDE, 3], rows sum to a half
    said = np.zeros((SIDE, SIDE, len(WORDS)), np.float32)
    for words, each in ((ROWS, shares[:, None]), (COLUMNS, shares[None])):
        said[..., [WORDS.index(word) for word in words]] = each
    return said.reshape(PLACES, len(WORDS))


_WHERE = _where()


def sketches(images: Sequence[Image]) -> Tensor:
    """Sketches of pictures of the scenes world, float32 [M, Q, W]."""
    return torch.from_numpy(np.stack([sketch(scene_of(image)) for image in images]))


def word_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The token of each of WORDS within a sentence, int64 [W]; of a word that is several tokens, the last."""
    return torch.tensor([tokenizer.encode(f" {word}", add_special_tokens=False)[-1] for word in WORDS])
