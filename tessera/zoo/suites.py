"""Suites of evaluation that need a pretrained part to judge with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import CLIPVisionModelWithProjection

from tessera.evaluate.scenes_suite import Sees, SuiteResult, evaluate_scenes
from tessera.zoo.parts import locate, quiet
from tessera.zoo.pictures import to_pixel_values

BATCH = 100


@torch.no_grad()
def clip_features(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Image embeddings float32 [n, 192] by `mini/clip` of pictures uint8 [64, 64, 3]."""
    with quiet():
        clip = CLIPVisionModelWithProjection.from_pretrained(locate("mini/clip"), dtype=torch.float32).eval()
    parts = (np.stack(pictures[start : start + BATCH]) for start in range(0, len(pictures), BATCH))
    return torch.cat([clip(to_pixel_values(part)).image_embeds for part in parts]).numpy()


def scenes(model: Sees, size: int = 200) -> SuiteResult:
    """Suite `scenes`, with the Fréchet distance of drawings on features of `mini/clip`."""
    return evaluate_scenes(model, size, clip_features)
