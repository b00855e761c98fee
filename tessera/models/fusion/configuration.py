"""Configuration of the three-encoder fusion model. The defaults are LXMERT's published size."""

# No `from __future__ import annotations` here: the field checks of huggingface_hub skip annotations that are
# strings.
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import LxmertConfig

from tessera.errors import UserError

MASK_RATE = 0.15  # of words and of regions
MAX_WORDS = 20  # pieces of a sentence with [CLS] and [SEP]
REGIONS = 36  # of a picture


@strict
class FusionConfig(LxmertConfig):
    """transformers' LxmertConfig, whose folders it reads, with what the paper varies.

    Args:
        visual_loss_normalizer: factor on each loss of the regions; the official code has 1 / 0.15, transformers 6.67.
        shared_cross_attention: one weight set for both directions of a cross-modality layer's attention, as published.
        label_losses: which regions learn their detected labels: "all", weighted by the detector's confidence, as the
            official code has it, or only the "masked" ones, as the paper describes it.

    Raises:
        UserError: heads that do not divide the width.
    """

    visual_loss_normalizer: float = 1 / MASK_RATE
    shared_cross_attention: bool = True
    label_losses: Literal["all", "masked"] = "all"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} does not divide among {self.num_attention_heads} attention heads"
            )
