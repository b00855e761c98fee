"""Painters: latent diffusion from words and picture tokens."""

from tessera.models.diffusion.painter import Painter
from tessera.models.diffusion.published import component_sizes, load_published

__all__ = ["Painter", "component_sizes", "load_published"]
