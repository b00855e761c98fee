"""A start in which a language model reads pictures where it has read sketches.

`mini/lm` has read of scenes in sketches (`tessera.zoo.sketches`), not in visual embeddings. Tuned on these as they
come, it loses more of what it knows than it finds again in a demonstration's time. So the connector or projector
before it starts by telling the sketch of a picture; and in VL-GPT what hides a picture starts as what hid a sketch.

Shape legend: M pictures; N = Q embeddings a picture, of width d, or states of width C that a connector
reads; W words of a sketch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tessera.data.sample import Image
from tessera.data.worlds import open_world
from tessera.errors import BadSample, UserError
from tessera.layers.mlp import Mlp
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.zoo.sketches import PLACES, scene_of

PICTURES = 64  # that an update looks at
TIMES = 32  # that all of them are looked at, about


def sketchable(images: Sequence[Image], number: int) -> list[Image]:
    """Those of the scenes world; where there are none, `number` of it: of these is what `mini/lm` knows of sketches."""
    found = []
    for image in images:
        with contextlib.suppress(BadSample):
            scene_of(image)
            found.append(image)
    source = open_world("scenes").source("pairs")
    return found or [source[index].images[0] for index in range(number)]


def start_reading(
    model: VLGPTForConditionalGeneration, embeds: Tensor, told: Tensor, words: Tensor, place: int
) -> None:
    """Let the projector tell sketches, and the masks be what stands for a sketch that is hidden.

    Args:
        embeds: visual embeddings [M, N, d] as the language model would read them.
        told: sketches [M, Q, W] of the same pictures.
        words: the token of each of the W words, int64 [W].
        place: the token that stands for one place of a sketch.

    Raises:
        UserError: the model has no projector or no masks, or another number of embeddings a picture than a sketch has
            places.
    """
    projector, mask = model.visual_projector, model.visual_mask
    if projector is None or mask is None or embeds.shape[1] != PLACES:
        raise UserError(
            "the language model can start as a reader of sketches only behind a projector, with visual_input_dropout"
            f" above 0 and {PLACES} embeddings a picture; set model.visual_projector=mlp, or told=0"
        )
    middle, table = told.mean(0), cast(nn.Embedding, model.get_input_embeddings()).weight.detach()
    _tell(projector.mlp, embeds, told - middle, table[words])
    with torch.no_grad():
        projector.places.weight.copy_(middle @ table[words])
        mask.weight.copy_(table[place].expand_as(mask.weight))


def start_connector(mlp: Mlp, states: Tensor, told: Tensor, words: Tensor) -> None:
    """Let the two layers of a connector tell sketches, each token the place that it lies in.

    Args:
        states: what they read of pictures, [M, N, C]; its channels may differ in spread, as layers of an encoder do.
        told: of the sketches of the same pictures, the place of each token, [M, N, W].
        words: the language model's embedding of each word, [W, d].
    """
    mean, spread = states.flatten(0, 1).mean(0), states.flatten(0, 1).std(0) + 1e-6
    middle = told.flatten(0, 1).mean(0)
    _tell(mlp, (states - mean) / spread, told - middle, words)
    with torch.no_grad():
        mlp.fc1.weight.div_(spread)
        mlp.fc1.bias.sub_(mlp.fc1.weight @ mean)
        mlp.fc2.bias.add_(middle @ words)


def _tell(mlp: Mlp, inputs: Tensor, told: Tensor, words: Tensor) -> None:
    """Let two layers give, of inputs [M, N, C], the sum of embeddings `words` [W, d] that `told` [M, N, W] weighs. The
    same each time, whatever was drawn before."""
    told_by = nn.Linear(mlp.fc1.out_features, told.shape[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in (mlp.fc1, told_by):
            layer.reset_parameters()
    _fit(nn.Sequential(mlp.fc1, mlp.activation, told_by), inputs, told)
    with torch.no_grad():
        mlp.fc2.weight.copy_(words.T @ told_by.weight)
        mlp.fc2.bias.copy_(told_by.bias @ words)


def _fit(module: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Least squares by AdamW, of inputs [M, ..., C] and targets [M, ..., K], always in the same order."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.05)
    updates = max(1, TIMES * len(inputs) // PICTURES)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        chosen = torch.randint(len(inputs), (PICTURES,), generator=generator)
        (module(inputs[chosen]) - targets[chosen]).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
