"""Values that follow from a name, so that weights of a model need not be kept beside what a reference said of them."""

from __future__ import annotations

import zlib
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def values(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    """Normal values that follow from a name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy(np.asarray(scale * rng.standard_normal(shape))).float()


def fill(model: Model) -> Model:
    """The model in evaluation mode, with values by the names of its parameters."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
            ones = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(values(name, tuple(parameter.shape), spread) + float(ones))
    return model.eval()
