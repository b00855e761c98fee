"""A text-to-image U-Net as the backbone of perception."""

from tessera.models.diffusion.perception.configuration import PerceptionConfig
from tessera.models.diffusion.perception.modeling import PerceptionModel, PerceptionOutput

__all__ = ["PerceptionConfig", "PerceptionModel", "PerceptionOutput"]
