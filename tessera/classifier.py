"""A trained image classifier in use: pictures in, classes or vectors out.

classifier = tessera.load("runs/cvt/model")
classifier.classify(image), classifier.embed(images)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import torch
from PIL import Image as PIL

from tessera.cards import read_card, write_card
from tessera.data.images import Pixels
from tessera.data.sample import Image, Still
from tessera.errors import UserError
from tessera.evaluate.classification import Guess, likeliest, look, probabilities
from tessera.files import atomic_folder
from tessera.models.classifier import ImageClassifier
from tessera.models.folder import read_folder
from tessera.weights import write_model
from tessera.zoo.parts import quiet

KIND = "image-classifier"


class NamesPictures:
    """What a model that names classes is asked, with the way that pictures enter it."""

    model: Any  # a NamesClasses
    pixels: Pixels

    abilities: ClassVar[tuple[str, ...]] = ("classify", "embed")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        found: tuple[str, ...] = self.model.classes
        return found

    @overload
    def classify(self, images: Still, *, top: int = 5) -> list[Guess]: ...
    @overload
    def classify(self, images: list[Still], *, top: int = 5) -> list[list[Guess]]: ...
    def classify(self, images, *, top=5):
        """The `top` likeliest classes of a picture, or of each of a list, with their probabilities."""
        single = not isinstance(images, list | tuple)
        shares = probabilities(self.model, _opened([images] if single else images), self.pixels)
        found = likeliest(shares, self.classes, top)
        return found[0] if single else found


@dataclass
class Classifier(NamesPictures):
    """An ImageClassifier with the way that pictures enter it.

    Attributes:
        pixels: as the model's configuration says.
    """

    model: ImageClassifier
    pixels: Pixels = field(init=False)

    def __post_init__(self) -> None:
        config = self.model.config
        self.pixels = Pixels(config.image_size, tuple(config.image_mean), tuple(config.image_std), fit=config.fit)

    def embed(self, inputs: Sequence[Still]) -> np.ndarray:
        """Feature vectors float32 [n, C] of pictures: what the head reads.

        Raises:
            UserError: an input is a text, for which this model has no vectors.
        """
        if any(isinstance(given, str) for given in inputs):
            raise UserError("an image classifier has vectors of pictures alone; a str is a text, give a Path instead")
        seen = look(self.model.backbone, _opened(inputs), self.pixels)
        parts = [self.model.vectors(one).float().cpu() for one in seen]
        return torch.cat(parts).numpy() if parts else np.zeros((0, self.model.backbone.width), np.float32)

    def save(self, folder: str | Path) -> None:
        """Write the model folder, as transformers lays it out."""
        with atomic_folder(folder) as aside, quiet():
            write_model(self.model, aside)
            write_card(aside, KIND)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> Classifier:
    """The classifier that `Classifier.save` wrote, in evaluation mode.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, one of another kind or version, a configuration with an unknown key or a wrong
            value, or weights that are damaged, pickled or do not fit.
    """
    folder = Path(folder)
    read_card(folder, KIND)
    with quiet():
        return Classifier(read_folder(folder, ImageClassifier, dtype, device))


def _opened(pictures: Sequence[Still]) -> list[PIL.Image]:
    return [Image(picture).pil() for picture in pictures]
