"""The last stage of mini VL-GPT: its regression head looks once more at many drawings, on states computed once.

A demonstration's stage C has few drawings, and the head learns from them what outlines are made of while the states
that it reads still move. Once they stand still, a pass over thousands of drawings costs what a few steps of the whole
model do. What is drawn is chosen for that (`Streams.drawings`): of a picture that shows more than was asked for, a
regression foresees the mean over all that it might show, and outlines are the first that is lost in it.

Shape legend: n drawings of N = Q embeddings, of width d; states of width C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera.data.packing import Batch
from tessera.data.sample import Image
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.objectives.regression import regression
from tessera.objectives.routing import route
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.zoo.recipe import Feed

DRAWINGS = 64  # of an update
TIMES = 5  # that each is looked at, about


@torch.random.fork_rng()
@torch.no_grad()
def states_and_targets(
    model: VLGPTForConditionalGeneration,
    batches: Iterable[Batch],
    embed: Callable[[Sequence[Image]], Tensor],
    half: bool,
) -> tuple[Tensor, Tensor]:
    """The hidden states that pictures are foreseen from, float16 [n, N, C], and what they are, [n, N, d]; on the CPU.

    Args:
        half: multiply in bfloat16.
    """
    torch.manual_seed(0)  # a resumed run hides the same pictures
    states, targets = [], []
    device, positions = model.device, model.config.num_image_positions
    for batch in batches:
        batch = batch.to(device)
        steps = route(batch.labels, batch.visual_target, batch.segment_ids).visual
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            embeds = embed(batch.images).to(device)
            hidden = model.train().hidden_states(
                batch.input_ids, batch.visual_target, batch.position_ids, batch.segment_ids, embeds
            )
        states.append(hidden[:, :-1][steps].to("cpu", torch.float16))
        targets.append(model.visual_targets(batch.input_ids, embeds, steps).to("cpu", torch.float16))
    return torch.cat(states).unflatten(0, (-1, positions)), torch.cat(targets).unflatten(0, (-1, positions))


def writing_steps(drawings: int) -> int:
    """Updates of the stage that looks at so many."""
    return TIMES * drawings // DRAWINGS


def writing_stage(head: nn.Module, states: Tensor, targets: Tensor, seed: int) -> Stage:
    """Fit a regression head, from where it is, to `states` [n, N, C] and `targets` [n, N, d]; nothing else changes."""

    def make(rng: np.random.Generator) -> dict[str, Tensor]:
        chosen = torch.from_numpy(rng.integers(len(states), size=DRAWINGS))
        return {"states": states[chosen].float(), "targets": targets[chosen].float()}

    def objective(head: nn.Module, batch: Any) -> dict[str, tuple[Tensor, int | Tensor]]:
        found = regression(head(batch["states"]).flatten(0, 1), batch["targets"].flatten(0, 1))
        return {"pictures": (found.total, found.number)}

    return Stage(
        name="write", model=head, objective=objective, loader=Feed(make, seed, held=f"drawings {len(states)}"),
        steps=max(1, writing_steps(len(states))), optimiser=Optimiser(kind="muon", lr=1e-3),
    )  # fmt: skip
