"""How a frozen language model learns to see by its connector and its prompt: the loader, the stage.

builder = Beside(tokenizer, model.config.ask, max_length=128)
trainer.run([injected_stage(model, words_loader(source, builder, 64), steps=500)])

Legend: M pictures, K class tokens of width C.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tessera.data.beside import Batch, Beside, Row
from tessera.data.loader import Loader, Samples
from tessera.data.mixture import Mixture
from tessera.data.quality import Opener
from tessera.data.sample import Image, Sample
from tessera.data.source import Source
from tessera.models.injected import InjectedLMForConditionalGeneration
from tessera.models.injected.modeling import perceive
from tessera.train.features import FeatureStore
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage


def words_loader(
    source: Source | Mixture, builder: Beside, batch: int, *, seed: int = 0, rank: int = 0, world_size: int = 1,
    workers: int = 0,
) -> Loader[Batch]:  # fmt: skip
    """Batches of samples about one picture each, their pictures left undecoded.

    Args:
        batch: samples of all processes together.
    """
    opener = Opener()

    def prepare(sample: Sample, rng: np.random.Generator) -> Row:
        row = builder.read(sample)
        opener([row.image])
        return row

    samples = Samples(prepare, builder.collate, batch)
    return Loader(source, samples, seed=seed, rank=rank, world_size=world_size, workers=workers)


def look(model: InjectedLMForConditionalGeneration, images: Sequence[Image]) -> Tensor:
    """Class tokens [M, K, C] of pictures. Raises BadSample where one cannot be read."""
    pixels = torch.from_numpy(np.stack([model.pixels.one(image.pil()) for image in images]))
    return model.encode_images(pixels.to(model.device))


def injected_stage(
    model: InjectedLMForConditionalGeneration, loader: Loader[Batch], steps: int, *,
    optimiser: Optimiser | None = None, accumulate: int = 1, store: FeatureStore | None = None,
) -> Stage:  # fmt: skip
    """The stage that trains connector and prompt by the next word, each picture looked at once.

    Args:
        store: class tokens of pictures, of the model's levels or more, where several models share them.
    """
    seen_by = store or FeatureStore(lambda images: look(model, images))
    return Stage(
        name="words",
        model=model,
        objective=partial(perceive, seen_by, model.config.levels),
        loader=loader,
        steps=steps,
        accumulate=accumulate,
        counts=lambda batch: {"words": len(batch.images)},
        optimiser=optimiser or Optimiser(),
        trainable=[f"{name}.*" for name, part in model.trained().items() if list(part.parameters())],
    )
