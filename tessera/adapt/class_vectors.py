"""What a CLIP text tower says of class names: its pooled output, averaged over sentences that they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from tessera.adapt.class_names import read_names


@lru_cache
def photo_templates() -> tuple[str, ...]:
    """The 80 sentences that CLIP's authors published for ImageNet."""
    return tuple((resources.files(__package__) / "templates.txt").read_text(encoding="utf-8").splitlines())


@torch.no_grad()
def class_vectors(
    tokenizer: PreTrainedTokenizerFast, text: CLIPTextModel, classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Vectors float32 [K, D] of K classes.

    Raises:
        UserError: as `read_names`: no classes, two of one name, or a name that the tokenizer cannot read.
    """
    longest = text.config.max_position_embeddings
    sums = torch.zeros(len(classes), text.config.hidden_size)
    for template in templates:
        ids = read_names(tokenizer, classes, 0, longest, template)
        sums += text(ids.to(text.device)).pooler_output.float().cpu()
    return sums / len(templates)
