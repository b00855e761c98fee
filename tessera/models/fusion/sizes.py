"""How many parameters each part of the fusion model has, counted on the meta device."""

from __future__ import annotations

import torch
from torch import nn

from tessera.models.fusion.configuration import FusionConfig
from tessera.models.fusion.pretraining import FusionForPreTraining


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def component_sizes(config: FusionConfig) -> dict[str, int]:
    """Parameters by part; "total" is that of the model with its pre-training heads, tied weights counted once."""
    with torch.device("meta"):
        model = FusionForPreTraining(config)
    model.tie_weights()
    encoders = model.lxmert.encoder
    parts = {
        "text embeddings": model.lxmert.embeddings,
        "language layers": encoders.layer,
        "object-relationship layers": encoders.r_layers,
        "cross-modality layers": encoders.x_layers,
        "region embedding": encoders.visn_fc,
        "pooler": model.lxmert.pooler,
        "backbone": model.lxmert,
        "total": model,
    }
    return {name: _count(part) for name, part in parts.items()}
