"""Suite `tokenizer`: held-out pictures through a codebook and back, and how much of the codebook they use."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from PIL import Image as PIL

from tessera.data.images import Pixels
from tessera.data.worlds import open_world
from tessera.errors import UserError
from tessera.evaluate.codebook import perplexity, restored, usage
from tessera.evaluate.intervals import bootstrap_mean
from tessera.evaluate.scenes_suite import SuiteResult
from tessera.models.vq import VQTokenizer

WORLDS = ("scenes", "emoji")


class HasCodebook(Protocol):
    """What the suite asks of a model."""

    tokenizer: VQTokenizer
    pixels: Pixels


def evaluate_tokenizer(model: HasCodebook, size: int = 200) -> SuiteResult:
    """Of `size` held-out pictures of each embedded world that this machine has: the share of all codes that they use,
    the codes' perplexity, and the signal-to-noise ratio of what comes back."""
    result, codes = SuiteResult(), model.tokenizer.config.codes
    for name in WORLDS:
        try:
            pictures = heldout_pictures(name, size)
        except UserError:  # no emoji font
            continue
        found = restored(model.tokenizer, pictures, model.pixels)
        result.scores |= {
            f"{name}: share of the {codes} codes used": usage(found.ids, codes),
            f"{name}: perplexity of the codes": perplexity(found.ids, codes),
            f"{name}: PSNR in dB": bootstrap_mean(-10 * np.log10(found.errors + 1e-8)),
        }
    return result


def heldout_pictures(name: str, size: int) -> list[PIL.Image]:
    """The first held-out pictures of a world, at most `size`. Raises UserError where this machine has no such world."""
    source = open_world(name).source("pairs", "heldout")
    return [source[place].images[0].pil() for place in range(min(size, len(source)))]
