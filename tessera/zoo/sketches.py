"""Sketches: scenes told in words, a few words at each place of a coarse raster.

A small language model learns to bind what is said of a thing to its place, to count and to compare only from many more
sentences than a demonstration has time for, and pictures cost far more than words. So `mini/lm` reads and writes
sketches where VL-GPT will read and write pictures: each of the 16 positions of a picture is then a distribution over
words, which goes in as the mean of their embeddings and is learned by cross-entropy. No picture is looked at.

Shape legend: M sketches; Q = 4 x 4 places; W words that a sketch is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tessera.data.sample import Image
from tessera.data.worlds.scenes.draw import object_masks
from tessera.data.worlds.scenes.graph import COLOURS, SHAPES, SIZES, TEXTURES, Scene, SceneObject
from tessera.data.worlds.scenes.graph import PLACES as NINE
from tessera.errors import BadSample

SIDE = 4  # places along each side
PLACES = SIDE * SIDE
NOTHING = "nothing"
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
QUARTERS = ("one", "two", "three", "four")  # of a place, row by row
WORDS = (NOTHING, *COLOURS, *SHAPES, *SIZES, *TEXTURES, *ROWS, *COLUMNS, *QUARTERS)
FULL = 0.25  # share of a place that a thing must cover to fill it
WHERE = 0.3  # share of the words that say which place it is
STANDS, COVERED = 0.25, 0.3  # shares, of what is foreseen, of where a thing stands and of what is covered


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
    return (1 - WHERE) * _things(scene, object_masks(scene), _looks) + WHERE * _WHERE


def foreseen(scene: Scene) -> np.ndarray:
    """What is learned of a sketch, float32 [Q, W]: what covers each place, where in the picture that stands, and how
    much of each quarter of the place is covered.

    From the latter two follows where outlines run, which a regression head cannot find out from a demonstration's
    drawings. A sketch that is read tells less, as an embedding of a part of a picture does.
    """
    masks = object_masks(scene)
    half = masks.shape[-1] // SIDE // 2
    shares = masks.any(axis=0).reshape(SIDE, 2, half, SIDE, 2, half).mean(axis=(2, 5))
    covered = np.zeros((PLACES, len(WORDS)), np.float32)
    covered[:, -len(QUARTERS) :] = shares.transpose(0, 2, 1, 3).reshape(PLACES, -1) / len(QUARTERS)
    covered[:, 0] = 1.0 - covered.sum(axis=1)
    things, stands = _things(scene, masks, _looks), _things(scene, masks, _stands)
    return (1 - STANDS - COVERED) * things + STANDS * stands + COVERED * covered


def _looks(thing: SceneObject) -> tuple[str, ...]:
    return thing.colour, thing.shape, thing.size, thing.texture


def _stands(thing: SceneObject) -> tuple[str, ...]:
    row, column = divmod(NINE.index(thing.place), len(COLUMNS))
    return ROWS[row], COLUMNS[column]


def _things(scene: Scene, masks: np.ndarray, words: Callable[[SceneObject], Sequence[str]]) -> np.ndarray:
    """At each place the words of the things that cover it, by how much they do, and NOTHING where none does,
    [Q, W]."""
    told = np.zeros((PLACES, len(WORDS)), np.float32)
    cell = masks.shape[-1] // SIDE
    parts = masks.reshape(len(scene.objects), SIDE, cell, SIDE, cell)
    covered = np.minimum(parts.mean(axis=(2, 4)).reshape(len(scene.objects), PLACES) / FULL, 1.0)
    for thing, share in zip(scene.objects, covered, strict=True):
        said = words(thing)
        for word in said:
            told[:, WORDS.index(word)] += share / len(said)
    told[:, 0] = np.maximum(0.0, 1.0 - covered.sum(axis=0))
    return told / told.sum(axis=1, keepdims=True)


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


def sketches(images: Sequence[Image], one: Callable[[Scene], np.ndarray] = sketch) -> Tensor:
    """Sketches of pictures of the scenes world, or what `one` else says of them, float32 [M, Q, W]."""
    told = np.zeros((len(images), PLACES, len(WORDS)), np.float32)
    for index, image in enumerate(images):
        told[index] = one(scene_of(image))
    return torch.from_numpy(told)


def word_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The token of each of WORDS within a sentence, int64 [W]; of a word that is several tokens, the last."""
    return torch.tensor([tokenizer.encode(f" {word}", add_special_tokens=False)[-1] for word in WORDS])
