"""A trained perception model in use: pictures in; classes of pixels, the thing that a phrase names, or depth out.

perceiver = tessera.load("runs/vpd/model")
perceiver.segment(images), perceiver.refer(images, phrases), perceiver.depth(images)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PIL
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tessera.adapt.class_names import unknown
from tessera.cards import read_card, write_card
from tessera.data.images import Pixels, normalise, to_array
from tessera.data.sample import Image, Still
from tessera.errors import BadSample, CheckpointError, UserError, nearest
from tessera.files import atomic_folder
from tessera.models.diffusion.perception import PerceptionModel
from tessera.models.folder import read_folder
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import quiet

KIND = "perceiver"
CENTRE = (0.5,) * 3  # mean and spread of each channel: pictures enter in [-1, 1]
STRIDE = 2 / 3  # of a window's side, from one window to the next


@dataclass
class Perceiver:
    """A PerceptionModel with the way that pictures and phrases enter it.

    Args:
        tokenizer: of phrases; None where none are read.

    Attributes:
        pixels: of the square pictures that it is trained on. In use a picture keeps its proportions, and is seen in
            overlapping windows of that size; for a phrase it is squeezed into one, as in the official code.
    """

    model: PerceptionModel
    tokenizer: PreTrainedTokenizerFast | None = None
    pixels: Pixels = field(init=False)

    abilities: ClassVar[tuple[str, ...]] = ("segment", "embed")

    def __post_init__(self) -> None:
        how: Any = "squash" if self.task == "referring" else "crop"
        self.pixels = Pixels(self.model.config.image_size, CENTRE, CENTRE, fit=how)

    @property
    def task(self) -> str:
        """What it was trained for: "segmentation", "referring" or "depth"."""
        return self.model.config.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of pixels, or for depth of pictures."""
        return self.model.classes

    def phrase(self, text: str) -> np.ndarray:
        """A phrase as the model reads it, int64 [L], padded and cut to its places.

        Raises:
            BadSample: it is empty, or has words that the tokenizer does not know.
        """
        assert self.tokenizer is not None
        strange = unknown(self.tokenizer, text)
        if strange or not text.strip():
            what = f"{strange[0]!r} is not of the tokenizer's vocabulary" if strange else "it is empty"
            raise BadSample(f"the phrase {text!r} cannot be read: {what}")
        longest = self.model.config.words
        read = self.tokenizer(text, padding="max_length", truncation=True, max_length=longest)
        return np.array(read["input_ids"], dtype=np.int64)

    def segment(self, images: Sequence[Still]) -> list[np.ndarray]:
        """The class of each pixel, a place in `classes`, int64 [H, W] of each picture.

        Raises:
            UserError: it was trained for another task.
        """
        self._asked("segmentation")
        return [self._windows(one, lambda seen: self.model(seen).logits)[0].argmax(0).numpy() for one in images]

    def depth(self, images: Sequence[Still], scene: str | None = None) -> list[np.ndarray]:
        """The depth of each pixel, float32 [H, W] of each picture.

        Args:
            scene: the class of all pictures, which the words say; it may be left out where there is one.

        Raises:
            UserError: it was trained for another task, or there is no such class.
        """
        self._asked("depth")
        if scene is None and len(self.classes) > 1:
            raise UserError(f"depth is told with the kind of scene; name one of {', '.join(self.classes)}")
        if scene is not None and scene not in self.classes:
            raise UserError(f"there is no kind of scene {scene!r}{nearest(scene, self.classes)}")
        place = torch.tensor([self.classes.index(scene) if scene else 0], device=self.model.device)

        def ask(seen: Tensor) -> Tensor:
            return self.model(seen, class_ids=place.expand(len(seen))).depth[:, None]

        return [self._windows(one, ask)[0, 0].numpy() for one in images]

    @torch.no_grad()
    def refer(self, images: Sequence[Still], phrases: Sequence[str]) -> list[np.ndarray]:
        """Where the thing is that the phrase of each picture names, bool [H, W].

        Raises:
            UserError: it was trained for another task, or a phrase cannot be read.
        """
        self._asked("referring")
        found = []
        for image, text in zip(images, phrases, strict=True):
            try:
                words = torch.from_numpy(self.phrase(text))[None].to(self.model.device)
            except BadSample as error:
                raise UserError(str(error)) from None
            picture = Image(image).pil()
            seen = torch.from_numpy(self.pixels.one(picture))[None].to(self.model.device, self.model.dtype)
            logits = self.model(seen, input_ids=words).logits.float().cpu()
            size = picture.height, picture.width
            found.append(F.interpolate(logits, size=size, mode="bilinear", align_corners=True)[0].argmax(0).numpy() > 0)
        return found

    @torch.no_grad()
    def embed(self, inputs: Sequence[Still]) -> np.ndarray:
        """Feature vectors float32 [n, C] of pictures: the means of the U-Net's stages, side by side. The words are
        all classes, or for phrases none.

        Raises:
            UserError: an input is a text, for which this model has no vectors.
        """
        if any(isinstance(given, str) for given in inputs):
            raise UserError("a perception model has vectors of pictures alone; a str is a text, give a Path instead")
        rows = [np.zeros((0, sum(self.model.pyramid.channels(0))), np.float32)]
        nothing = self._silence()
        for image in inputs:
            seen = torch.from_numpy(self.pixels.one(Image(image).pil()))[None].to(self.model.device, self.model.dtype)
            features = self.model.features(self.model.encode(seen), self.model.words(1, nothing))
            rows.append(self.model.vectors(features).float().cpu().numpy())
        return np.concatenate(rows)

    def _silence(self) -> Tensor | None:
        if self.tokenizer is None:
            return None
        longest = self.model.config.words
        read = self.tokenizer("", padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        ids: Tensor = read["input_ids"]
        return ids.to(self.model.device)

    def _asked(self, task: str) -> None:
        if self.task != task:
            raise UserError(f"this model was trained for {self.task}, not for {task}")

    @torch.no_grad()
    def _windows(self, image: Still, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """What `ask` says of windows [1, 3, S, S], averaged where they overlap, at the picture's own size: float
        [1, K, H, W] on the CPU."""
        picture, side = Image(image).pil(), self.pixels.size
        scale = side / min(picture.size)
        width, height = (max(side, round(length * scale)) for length in picture.size)
        resized = picture.resize((width, height), PIL.Resampling.BICUBIC)
        values = torch.from_numpy(normalise(to_array(resized), self.pixels.mean, self.pixels.std))[None]
        values = values.to(self.model.device, self.model.dtype)
        total, times = None, torch.zeros(height, width)
        for y, x in product(_starts(height, side), _starts(width, side)):
            told = ask(values[..., y : y + side, x : x + side]).float().cpu()
            total = torch.zeros(1, told.shape[1], height, width) if total is None else total
            total[..., y : y + side, x : x + side] += told
            times[y : y + side, x : x + side] += 1
        assert total is not None
        return F.interpolate(total / times, size=(picture.height, picture.width), mode="bilinear", align_corners=False)

    def save(self, folder: str | Path) -> None:
        """Write the model folder, as transformers lays it out, with the tokenizer of phrases."""
        with atomic_folder(folder) as aside, quiet():
            self.model.save_pretrained(aside)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(aside)
            write_card(aside, KIND)


def _starts(length: int, side: int) -> Iterable[int]:
    """Where windows of `side` begin that cover `length`."""
    step = max(1, round(side * STRIDE))
    return [*range(0, length - side, step), length - side]


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> Perceiver:
    """What `Perceiver.save` wrote, in evaluation mode.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, one of another kind or version; a configuration with an unknown key or a wrong
            value; weights or a tokenizer that are damaged, pickled or do not fit.
    """
    folder = Path(folder)
    read_card(folder, KIND)
    with quiet():
        model: Any = read_folder(folder, PerceptionModel, dtype, device)
        tokenizer = read_tokenizer(folder) if model.config.task == "referring" else None
    if tokenizer is not None and len(tokenizer) > model.text.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer of {folder} has {len(tokenizer)} pieces and its text tower knows"
            f" {model.text.config.vocab_size}"
        )
    return Perceiver(model, tokenizer)
