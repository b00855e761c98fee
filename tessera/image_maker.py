"""A trained tokenizer with a codebook and the model of its codes in use: pictures in; pictures, classes, vectors out.

maker = tessera.load("runs/vit-vqgan/model")
maker.reconstruct(images), maker.sample(4, of="Animals & Nature"), maker.embed(images)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image as PIL
from torch import Tensor

from tessera.cards import read_card, write_card
from tessera.data.images import Pixels
from tessera.data.sample import Image, Still
from tessera.errors import CheckpointError, UserError, nearest
from tessera.evaluate.classification import Guess, likeliest
from tessera.evaluate.codebook import code_features
from tessera.files import atomic_folder
from tessera.generate.image_codes import AS_PUBLISHED, sample_codes
from tessera.generate.sampling import Sampling
from tessera.models.folder import read_folder
from tessera.models.image_ar import ImageARModel
from tessera.models.image_ar.modeling import check_pair
from tessera.models.vq import VQTokenizer
from tessera.zoo.parts import quiet

KIND = "image-maker"
TOKENIZER, MODEL = "tokenizer", "transformer"  # folders within the model's
TOGETHER = 64  # pictures that are drawn or looked at at once


@dataclass
class ImageMaker:
    """A VQTokenizer and an ImageARModel of its codes, both in evaluation mode, with the way that pictures enter.

    Attributes:
        pixels: values in [0, 1] at the size that the tokenizer was trained for.

    Raises:
        UserError: the two disagree about the codebook or the grid.
    """

    tokenizer: VQTokenizer
    model: ImageARModel
    pixels: Pixels = field(init=False)

    def __post_init__(self) -> None:
        check_pair(self.model.config, self.tokenizer.config)
        self.pixels = Pixels(self.tokenizer.config.image_size, (0.0,) * 3, (1.0,) * 3)

    @property
    def abilities(self) -> tuple[str, ...]:
        """Commands that it answers: those about classes where it knows some."""
        return ("reconstruct", "sample", "embed", "evaluate", *(("draw", "classify") if self.classes else ()))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none for a model of pictures alone."""
        return tuple(self.model.config.classes)

    @torch.no_grad()
    def encode(self, images: Sequence[Still]) -> Tensor:
        """Codes int64 [n, N] of pictures, brought to the size of the model."""
        arrays = [self.pixels.one(Image(picture).pil()) for picture in images]
        found = [
            self.tokenizer.encode(torch.from_numpy(np.stack(arrays[at : at + TOGETHER])).to(self.tokenizer.device)).ids
            for at in range(0, len(arrays), TOGETHER)
        ]
        return torch.cat(found).cpu() if found else torch.zeros(0, self.model.config.length, dtype=torch.int64)

    @torch.no_grad()
    def decode(self, ids: Tensor) -> list[PIL.Image]:
        """Pictures of codes int [n, N]."""
        drawn = []
        for part in ids.split(TOGETHER):
            values = self.tokenizer.decode(part.to(self.tokenizer.device), self.tokenizer.config.grid).float().cpu()
            drawn += list(values.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy())
        return [PIL.fromarray(picture) for picture in drawn]

    def reconstruct(self, images: Sequence[Still]) -> list[PIL.Image]:
        """Pictures through the codes and back."""
        return self.decode(self.encode(images))

    def sample(
        self, count: int, *, of: str | None = None, seed: int = 0, sampling: Sampling = AS_PUBLISHED,
        guidance: float = 1.0,
    ) -> list[PIL.Image]:  # fmt: skip
        """New pictures.

        Args:
            of: the class that they show; None for any.
            guidance: how much more of its class; see `sample_codes`.

        Raises:
            UserError: no class has this name, with the nearest; or as `sample_codes`.
        """
        return self._draw(None if of is None else [self._place(of)] * count, count, seed, sampling, guidance)

    def draw(self, texts: Sequence[str], *, seed: int = 0) -> list[PIL.Image]:
        """A picture of the class that each text names. Raises UserError for one that names none."""
        places = [self._place(text) for text in texts]
        return self._draw(places, len(texts), seed, AS_PUBLISHED, 1.0)

    def _place(self, name: str) -> int:
        if not self.classes:
            raise UserError(f"this model was trained without classes and cannot be asked for {name!r}; ask for any")
        if name not in self.classes:
            raise UserError(f"no class is named {name!r}{nearest(name, self.classes)}")
        return self.classes.index(name)

    def _draw(
        self, places: list[int] | None, count: int, seed: int, sampling: Sampling, guidance: float
    ) -> list[PIL.Image]:
        device = self.model.device
        generator = torch.Generator(device).manual_seed(seed)
        drawn: list[PIL.Image] = []
        for at in range(0, count, TOGETHER):
            rows = min(TOGETHER, count - at)
            labels = None if places is None else torch.tensor(places[at : at + rows], device=device)
            drawn += self.decode(
                sample_codes(self.model, rows, labels=labels, sampling=sampling, guidance=guidance, generator=generator)
            )
        return drawn

    def embed(self, inputs: Sequence[Still]) -> np.ndarray:
        """Feature vectors float32 [n, W] of pictures: averaged over the codes in the middle of the model.

        Raises:
            UserError: an input is a text, for which this model has no vectors.
        """
        if any(isinstance(given, str) for given in inputs):
            raise UserError("an image model has vectors of pictures alone; a str is a text, give a Path instead")
        if not inputs:
            return np.zeros((0, self.model.config.width), np.float32)
        return code_features(self.model, self.encode(inputs))

    @overload
    def classify(self, images: Still, *, top: int = 5) -> list[Guess]: ...
    @overload
    def classify(self, images: list[Still], *, top: int = 5) -> list[list[Guess]]: ...
    def classify(self, images, *, top=5):
        """The `top` likeliest classes of a picture, or of each of a list, by the linear probe of the features."""
        single = not isinstance(images, list | tuple)
        if self.model.probe is None:
            raise UserError("this model was trained without classes and names none")
        with torch.no_grad():
            features = torch.from_numpy(self.embed([images] if single else images)).to(self.model.device)
            shares = self.model.probe(features).softmax(-1).cpu()
        found = likeliest(shares, self.classes, top)
        return found[0] if single else found

    def save(self, folder: str | Path) -> None:
        """Write the model folder: tokenizer/ and transformer/, as transformers lays them out."""
        with atomic_folder(folder) as aside, quiet():
            self.tokenizer.save_pretrained(aside / TOKENIZER)
            self.model.save_pretrained(aside / MODEL)
            write_card(aside, KIND)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> ImageMaker:
    """What `ImageMaker.save` wrote, in evaluation mode.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, one of another kind or version; a configuration that is wrong or that the
            weights do not fit, such as another number of codes; or a tokenizer and a model that do not belong together.
    """
    folder = Path(folder)
    read_card(folder, KIND)
    with quiet():
        tokenizer: Any = read_folder(folder / TOKENIZER, VQTokenizer, dtype, device)
        model: Any = read_folder(folder / MODEL, ImageARModel, dtype, device)
    try:
        return ImageMaker(tokenizer, model)
    except UserError as error:
        raise CheckpointError(f"{folder}: {error}") from None
