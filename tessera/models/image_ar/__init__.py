"""Autoregressive models of image codes."""

from tessera.models.image_ar.configuration import ImageARConfig
from tessera.models.image_ar.modeling import ImageARInTraining, ImageARModel

__all__ = ["ImageARConfig", "ImageARInTraining", "ImageARModel"]
