"""Pictures drawn code by code, over a cache of keys and values.

Legend: B pictures, N codes each, of K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.generate.sampling import Sampling, choose
from tessera.models.image_ar import ImageARModel

AS_PUBLISHED = Sampling(temperature=1.0)  # neither top-k nor top-p


@torch.no_grad()
def sample_codes(
    model: ImageARModel, rows: int, *, labels: Tensor | None = None, sampling: Sampling = AS_PUBLISHED,
    guidance: float = 1.0, generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Codes int64 [B, N] of B = `rows` pictures. The model is in evaluation mode.

    Args:
        labels: int [B], the class of each; None for no class.
        guidance: g of (1 - g) * scores without the class + g * scores with it (Ho and Salimans 2022); 1 takes the
            class as it is and costs one pass a code, other values cost two.
        generator: of the draws, on the model's device; needed unless the temperature is 0.

    Raises:
        UserError: guidance without classes to be guided by, or that is no number; or as `choose` and
            `ImageARModel.start`.
    """
    if not math.isfinite(guidance):
        raise UserError(f"guidance is {guidance}; give a number, 1 for the class as it is")
    guided = guidance != 1.0
    if guided and labels is None:
        raise UserError(f"guidance {guidance} needs a class to be guided to; name one, or leave guidance at 1")
    start = model.start(rows, labels)
    if guided:
        start = torch.cat([start, model.start(rows)])
    cache, embeds = model.cache(len(start)), start
    found: list[Tensor] = []
    for place in range(model.config.length):
        scores = model.score(model.run(embeds, cache)[:, -1]).float()
        if guided:
            told, untold = scores.chunk(2)
            scores = untold + guidance * (told - untold)
        found.append(choose(scores, sampling, generator))
        embeds = model.embed(found[-1][:, None], place)
        embeds = embeds.repeat(2, 1, 1) if guided else embeds
    return torch.stack(found, dim=1)
