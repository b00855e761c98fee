"""A frozen CLIP with learned prompts in use: pictures in, named classes out, and vectors of pictures and words.

classifier = tessera.load("runs/maple/model")
classifier.classify(image), classifier.renamed(["lynx", "red panda"]).classify(image)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPModel, PreTrainedTokenizerFast

from tessera.adapt.prompted_clip import PromptedCLIP, load_prompts, save_prompts
from tessera.cards import read_card, write_card
from tessera.classifier import NamesPictures
from tessera.data.images import Pixels
from tessera.data.sample import Image, Still
from tessera.errors import CheckpointError, UserError
from tessera.evaluate.classification import look
from tessera.files import atomic_folder
from tessera.layers.attention import NAME as ATTENTION
from tessera.zoo.foundation import read_part, read_tokenizer
from tessera.zoo.parts import locate, quiet

KIND = "prompted-clip"
PROMPTS = "prompts.safetensors"


@dataclass
class PromptedClassifier(NamesPictures):
    """A PromptedCLIP with the way that pictures enter it.

    Args:
        clip: name or folder of the CLIP, which is not saved with the prompts.
    """

    model: PromptedCLIP
    clip: str

    def __post_init__(self) -> None:
        self.pixels = pixels_of(self.model.clip)

    def renamed(self, classes: Sequence[str]) -> PromptedClassifier:
        """The same prompts over other classes. Raises UserError where a name cannot be read."""
        return PromptedClassifier(self.model.renamed(classes), self.clip)

    @torch.no_grad()
    def embed(self, inputs: Sequence[Still]) -> np.ndarray:
        """Unit vectors float32 [n, D] of pictures, or of class names, all of one kind, in CLIP's joint space."""
        words = [given for given in inputs if isinstance(given, str)]
        if words and len(words) < len(inputs):
            raise UserError(
                "pictures and class names cannot be embedded in one call; a str is a name, a Path a picture"
            )
        if words:
            if self.model.learner.conditional is not None:
                raise UserError("these prompts are a function of the picture; a class name alone has no vector")
            unique = list(dict.fromkeys(words))
            found = self.model.renamed(unique).text_features().float().cpu().numpy()
            return found[[unique.index(one) for one in words]]
        seen = look(_Eyes(self.model), [Image(given).pil() for given in inputs], self.pixels)
        parts = [one.float().cpu() for one in seen]
        width = self.model.clip.config.projection_dim
        return torch.cat(parts).numpy() if parts else np.zeros((0, width), np.float32)

    def save(self, folder: str | Path) -> None:
        """Write the model folder: the prompts, and the name of the CLIP that they belong to."""
        with atomic_folder(folder) as aside:
            save_prompts(self.model, aside / PROMPTS)
            write_card(aside, KIND, clip=self.clip)


@dataclass
class _Eyes:
    """The image half of a PromptedCLIP alone."""

    model: PromptedCLIP

    def __post_init__(self) -> None:
        self.device, self.dtype = self.model.device, self.model.dtype

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.image_features(pixel_values)


def pixels_of(clip: CLIPModel) -> Pixels:
    """How pictures enter a CLIP."""
    vision: Any = clip.vision_model.config
    return Pixels(vision.image_size)


def read_clip(name: str, dtype: torch.dtype = torch.float32) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """A CLIP with its tokenizer, shipped or from a folder.

    Raises:
        UserError: an unknown mini part.
        CheckpointError: it is absent, damaged, pickled or no CLIP, or its tokenizer is.
    """
    where = locate(name)
    with quiet():
        clip = read_part(CLIPModel, where, dtype, attn_implementation=ATTENTION)
        return clip, read_tokenizer(where)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> PromptedClassifier:
    """The classifier that `PromptedClassifier.save` wrote, in evaluation mode.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, one of another kind or version, prompts that are damaged or of another size
            than the CLIP, or a CLIP that is absent or damaged.
    """
    folder = Path(folder)
    name = read_card(folder, KIND).get("clip")
    if not isinstance(name, str):
        raise CheckpointError(
            f"the card of {folder} does not name the CLIP that its prompts belong to; train them again"
        )
    clip, tokenizer = read_clip(name, dtype)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.nn.Module.to(clip, place)
    return PromptedClassifier(load_prompts(folder / PROMPTS, clip, tokenizer), name)
