"""Configuration of the three-encoder fusion model. The defaults are LXMERT's published size."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are
# strings.
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LxmertConfig

from tessera.errors import UserError

MASK_RATE = 0.15  # of words and of regions
REGIONS = 36  # of a picture


@strict
class FusionConfig(LxmertConfig):
    """transformers' LxmertConfig, whose folders it reads, with what the paper varies.

    Args:
        hidden_size, num_attention_heads, intermediate_size: of the layers of all three encoders.
        l_layers, r_layers, x_layers: language, object-relationship and cross-modality layers.
        visual_loss_normalizer: factor on each loss of the regions; the official code has 1 / 0.15, transformers 6.67.
        shared_cross_attention: one weight set for both directions of a cross-modality layer's attention, as published.
        label_losses: which regions learn their detected labels: "all", weighted by the detector's confidence, as the
            official code has it, or only the "masked" ones, as the paper describes it.
        max_words: pieces of a sentence with its two marks; what is longer is cut.

    Raises:
        UserError: heads that do not divide the width, or sentences that are longer than the table of positions.
    """

    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    l_layers: int = 9
    r_layers: int = 5
    x_layers: int = 5
    visual_loss_normalizer: float = 1 / MASK_RATE
    shared_cross_attention: bool = True
    label_losses: Literal["all", "masked"] = "all"
    max_words: int = 20

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} does not divide among {self.num_attention_heads} attention heads"
            )
        if not 3 <= self.max_words <= self.max_position_embeddings:
            raise UserError(
                f"max_words is {self.max_words}; it is at least 3 and at most max_position_embeddings"
                f" ({self.max_position_embeddings})"
            )
