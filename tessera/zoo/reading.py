"""A start in which a language model reads pictures where it has read sketches, and an end in which VL-GPT's practises
writing them.

`mini/lm` has read of scenes in sketches (`tessera.zoo.sketches`), not in visual embeddings. Tuned on these as they
come, it loses more of what it knows than it finds again in a demonstration's time. So the connector or projector
before it starts by telling the sketch of a picture. In VL-GPT what hides a picture starts as what hid a sketch. And its
regression head, for which a demonstration has few drawings, looks once more at many when the language model is done.

Shape legend: M pictures; N = Q embeddings a picture, of width d, or states of width C that a connector
reads; W words of a sketch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tessera.connect.connectors import TwoLayers
from tessera.data.packing import Batch
from tessera.data.sample import Image
from tessera.data.worlds import open_world
from tessera.errors import BadSample, UserError
from tessera.layers.mlp import Mlp
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.objectives.routing import route
from tessera.zoo.sketches import PLACES, scene_of

PICTURES, STATES = 64, 512  # that an update looks at, of those that tell sketches and those that write
TOLD, WRITTEN = 32, 10  # times that all of them are looked at
TOLD_RATE, WRITTEN_RATE = 2e-3, 1e-3  # of the fits by AdamW


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


def start_connector(connector: TwoLayers, states: Tensor, told: Tensor, words: Tensor) -> None:
    """Let a connector tell sketches, each token the place that it lies in.

    Args:
        states: what it reads of pictures, [M, N, C]; its channels may differ in spread, as layers of an encoder do.
        told: of the sketches of the same pictures, the place of each token, [M, N, W].
        words: the language model's embedding of each word, [W, d].
    """
    mean, spread = states.flatten(0, 1).mean(0), states.flatten(0, 1).std(0) + 1e-6
    middle, mlp = told.flatten(0, 1).mean(0), connector.mlp
    _tell(mlp, (states - mean) / spread, told - middle, words)
    with torch.no_grad():
        mlp.fc1.weight.div_(spread)
        mlp.fc1.bias.sub_(mlp.fc1.weight @ mean)
        mlp.fc2.bias.add_(middle @ words)


def finish_writing(
    model: VLGPTForConditionalGeneration,
    batches: Iterable[Batch],
    embed: Callable[[Sequence[Image]], Tensor],
    half: bool = False,
) -> None:
    """Fit the regression head, from where it is, to the hidden states before the embeddings of pictures; nothing else
    changes.

    The states are computed once, so that a pass over them costs what a few steps of the whole model do.

    Args:
        half: multiply in bfloat16.
    """
    states, targets = [], []
    for batch in batches:
        steps = route(batch.labels, batch.visual_target, batch.segment_ids).visual
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            embeds = embed(batch.images)
            hidden = model.train()(
                batch.input_ids, visual_target=batch.visual_target, position_ids=batch.position_ids,
                segment_ids=batch.segment_ids, image_embeds=embeds,
            ).hidden  # fmt: skip
        states.append(hidden[:, :-1][steps].float())
        targets.append(model.visual_targets(batch.input_ids, embeds, steps))
    _fit(model.regression_head, torch.cat(states), torch.cat(targets), STATES, WRITTEN, WRITTEN_RATE, half)


def _tell(mlp: Mlp, inputs: Tensor, told: Tensor, words: Tensor) -> None:
    """Let two layers give, of inputs [M, N, C], the sum of embeddings `words` [W, d] that `told` [M, N, W] weighs. The
    same each time, whatever was drawn before."""
    told_by = nn.Linear(mlp.fc1.out_features, told.shape[2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in (mlp.fc1, told_by):
            layer.reset_parameters()
    _fit(nn.Sequential(mlp.fc1, mlp.activation, told_by), inputs, told, PICTURES, TOLD, TOLD_RATE)
    with torch.no_grad():
        mlp.fc2.weight.copy_(words.T @ told_by.weight)
        mlp.fc2.bias.copy_(told_by.bias @ words)


def _fit(
    module: nn.Module, inputs: Tensor, targets: Tensor, number: int, epochs: int, rate: float, half: bool = False
) -> None:
    """Least squares by `number` of the inputs [n, ..., C] and targets [n, ..., K] at a time, each looked at about
    `epochs` times, always in the same order."""
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    updates = max(1, epochs * len(inputs) // number)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    for _ in range(updates):
        chosen = torch.randint(len(inputs), (number,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            said = module(inputs[chosen])
        (said.float() - targets[chosen]).square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
