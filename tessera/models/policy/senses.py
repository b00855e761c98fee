"""The frozen encoders that a policy reads the world through: pictures by any backbone, words by CLIP's text tower.

Legend: M pictures or sentences, N_p patches, C and E widths of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerFast

from tessera.data.images import Pixels
from tessera.data.sample import Image
from tessera.vision.base import VisionBackbone

TOGETHER = 64  # pictures that are looked at at once


@dataclass
class Senses:
    """Both encoders in evaluation mode, without gradient.

    Attributes:
        pixels: how pictures enter `vision`.
    """

    vision: VisionBackbone
    text: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerFast
    pixels: Pixels
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for part in (self.vision, self.text):
            part.eval().requires_grad_(False)

    @property
    def widths(self) -> tuple[int, int]:
        """C and E."""
        inner: Any = self.text.config
        return self.vision.width, inner.projection_dim

    def arrays(self, pictures: Sequence[Image]) -> np.ndarray:
        """Pictures as the image encoder reads them, float32 [M, 3, side, side]."""
        return np.stack([self.pixels.one(one.pil()) for one in pictures])

    @torch.no_grad()
    def encode(self, arrays: np.ndarray) -> Tensor:
        """[M, 1 + N_p, C] on the CPU of what `arrays` gives: the pooled token, then the patches."""
        found = []
        for at in range(0, len(arrays), TOGETHER):
            seen = self.vision(torch.from_numpy(arrays[at : at + TOGETHER]).to(self.vision.device))
            found.append(torch.cat([seen.pooled[:, None], seen.tokens], dim=1).float().cpu())
        return torch.cat(found)

    def look(self, pictures: Sequence[Image]) -> Tensor:
        """`encode` of pictures, [M, 1 + N_p, C]."""
        return self.encode(self.arrays(pictures))

    @torch.no_grad()
    def read(self, goals: Sequence[str]) -> Tensor:
        """[M, E] of length 1 on the CPU; a sentence is read once."""
        new = [one for one in dict.fromkeys(goals) if one not in self._known]
        if new:
            longest = self.text.config.max_position_embeddings
            words = self.tokenizer(new, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            found = self.text(words.input_ids.to(self.text.device)).text_embeds.float().cpu()
            self._known |= dict(zip(new, F.normalize(found, dim=-1), strict=True))
        return torch.stack([self._known[one] for one in goals])
