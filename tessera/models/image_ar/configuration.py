"""Configuration of autoregressive models of image codes. The defaults are VIM-Base on 32 x 32 codes."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are strings.
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from tessera.errors import UserError
from tessera.layers.attention import NAME as ATTENTION
from tessera.vision.base import at_least_one


@strict
class ImageARConfig(PreTrainedConfig):
    """A decoder-only transformer over the codes of a picture, row by row.

    Args:
        codes: K, entries of the codebook.
        rows, columns: the grid of a picture's codes.
        dropout: of both branches of a block and of the activation between them.
        classes: names of the classes that pictures are asked for by; none for a model without classes.
        class_dropout: share of the classes that training hides, for guidance without a classifier; 0 as published.
        middle: the block whose averaged output is read as features, counted from 1; 0 for 5 / 12 of the depth, which
            are the published 10 of 24 and 15 of 36.
    """

    model_type = "tessera-image-ar"

    codes: int = 8192
    rows: int = 32
    columns: int = 32
    width: int = 1536
    depth: int = 24
    heads: int = 16
    mlp_ratio: float = 4.0
    dropout: float = 0.1
    classes: list[str] | tuple[str, ...] = ()
    class_dropout: float = 0.0
    middle: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("attn_implementation", ATTENTION)
        super().__post_init__(**kwargs)
        at_least_one(self, "codes", "rows", "columns", "width", "depth", "heads")
        if self.width % self.heads:
            raise UserError(f"a width of {self.width} does not divide into {self.heads} heads; change one of them")
        for share in ("dropout", "class_dropout"):
            if not 0 <= getattr(self, share) < 1:
                raise UserError(f"{share} is {getattr(self, share)}; it is a share from 0 to below 1")
        self.middle = self.middle or max(1, 5 * self.depth // 12)
        if not 1 <= self.middle <= self.depth:
            raise UserError(f"middle is {self.middle}; there are blocks 1 to {self.depth}")

    @property
    def length(self) -> int:
        """N, codes of a picture."""
        return self.rows * self.columns


AutoConfig.register(ImageARConfig.model_type, ImageARConfig)
