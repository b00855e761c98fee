"""A trained fusion model in use: pictures and questions in, answers or vectors out.

answerer = tessera.load("runs/lxmert/model")
answerer.answer(image, "is there a red star?"), answerer.embed(images)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, overload

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionModel

from tessera.cards import read_card, write_card
from tessera.data.proposals import propose
from tessera.data.regions import Regions, collate_regions, unnamed
from tessera.data.sample import Image, Still
from tessera.data.sentences import Sentences
from tessera.errors import UserError
from tessera.files import atomic_folder
from tessera.models.folder import read_folder
from tessera.models.fusion import FusionForQuestionAnswering
from tessera.models.fusion.outputs import FusionOutput
from tessera.weights import read_model
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import quiet
from tessera.zoo.regions import RegionEncoder

KIND = "answerer"
EYES = "vision"  # the folder, in the model's, of what sees regions
_TOGETHER = 64  # questions that are answered at once


@dataclass
class Answerer:
    """A FusionForQuestionAnswering with what it reads by.

    Args:
        encoder: sees the regions of pictures; None for a model of published features, which answers `answer_regions`.
    """

    model: FusionForQuestionAnswering
    sentences: Sentences
    encoder: RegionEncoder | None

    abilities: ClassVar[tuple[str, ...]] = ("ask", "embed")

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The table of answers."""
        names = {int(place): name for place, name in (self.model.config.id2label or {}).items()}
        return tuple(names[place] for place in range(self.model.config.num_qa_labels))

    @overload
    def answer(self, images: Still, questions: str) -> str: ...
    @overload
    def answer(self, images: list[Still], questions: str | list[str]) -> list[str]: ...
    def answer(self, images, questions):
        """The likeliest answer to each question about the picture beside it, or to the one question.

        Raises:
            UserError: other numbers of pictures and questions, or a model of published features.
            BadSample: a picture cannot be read.
        """
        single = not isinstance(images, list | tuple)
        pictures = [images] if single else list(images)
        asked = [questions] * len(pictures) if isinstance(questions, str) else list(questions)
        found = self.answer_regions([self.look(picture) for picture in pictures], asked)
        return found[0] if single else found

    def answer_regions(self, regions: Sequence[Regions], questions: Sequence[str]) -> list[str]:
        """The likeliest answer to each question about the regions of a picture, which have features.

        Raises:
            UserError: other numbers of pictures and questions.
        """
        return [self.answers[place] for place in self.scores(regions, questions).argmax(dim=1).tolist()]

    @torch.no_grad()
    def scores(self, regions: Sequence[Regions], questions: Sequence[str]) -> Tensor:
        """Logits float32 [n, answers] of each question about the regions of a picture.

        Raises:
            UserError: other numbers of pictures and questions.
        """
        if len(regions) != len(questions):
            raise UserError(
                f"{len(regions)} pictures and {len(questions)} questions; give one question for each picture"
            )
        rows = [torch.zeros(0, self.model.config.num_qa_labels)]
        for start in range(0, len(questions), _TOGETHER):
            states = self._states(regions[start : start + _TOGETHER], questions[start : start + _TOGETHER])
            rows.append(self.model.answer_head(states.pooled).float().cpu())
        return torch.cat(rows)

    def look(self, picture: Still) -> Regions:
        """The regions that stand out in a picture, with their features.

        Raises:
            UserError: a model of published features.
            BadSample: the picture cannot be read.
        """
        if self.encoder is None:
            raise UserError(
                "this model reads regions out of a detector's files, not pictures;"
                " use answer_regions with those of tessera.data.readers.detections"
            )
        image = Image(picture)
        found = unnamed(propose(np.asarray(image.pil())))
        return replace(found, features=self.encoder([image], [found])[0].numpy())

    @torch.no_grad()
    def embed(self, inputs: Sequence[Still]) -> np.ndarray:
        """Vectors float32 [n, W] of pictures: the mean over regions of the last states, beside an empty sentence.

        Raises:
            UserError: an input is a text, which this model reads only beside a picture.
            BadSample: a picture cannot be read.
        """
        if any(isinstance(given, str) for given in inputs):
            raise UserError("this model has vectors of pictures alone; a str is a text, give a Path instead")
        rows = [np.zeros((0, self.model.config.hidden_size), np.float32)]
        for start in range(0, len(inputs), _TOGETHER):
            part = [self.look(given) for given in inputs[start : start + _TOGETHER]]
            seen = self._states(part, [""] * len(part)).vision.float().cpu()
            rows += [
                one[: len(regions)].mean(dim=0, keepdim=True).numpy() for one, regions in zip(seen, part, strict=True)
            ]
        return np.concatenate(rows)

    def _states(self, regions: Sequence[Regions], sentences: Sequence[str]) -> FusionOutput:
        marked = [self.sentences.marked(self.sentences.words(sentence)) for sentence in sentences]
        ids, mask = (one.to(self.model.device) for one in self.sentences.collate(marked))
        batch = collate_regions(regions).to(self.model.device)
        assert batch.features is not None
        return self.model.lxmert(
            ids, batch.features.to(self.model.dtype), batch.boxes.to(self.model.dtype), attention_mask=mask,
            visual_attention_mask=batch.mask,
        )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """Write the model folder: the fusion model and its tokenizer as transformers lays them out, vision/ beside."""
        with atomic_folder(folder) as aside, quiet():
            self.model.save_pretrained(aside)
            self.sentences.tokenizer.save_pretrained(aside)
            if self.encoder is not None:
                self.encoder.encoder.save_pretrained(aside / EYES)
            write_card(aside, KIND)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> Answerer:
    """The answerer that `Answerer.save` wrote, in evaluation mode.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, one of another kind or version, a configuration with an unknown key or a wrong
            value, or a part that is damaged, pickled or does not fit.
    """
    folder = Path(folder)
    read_card(folder, KIND)
    with quiet():
        model = read_folder(folder, FusionForQuestionAnswering, dtype, device)
        sentences = Sentences(read_tokenizer(folder), model.config.max_words)
        if not (folder / EYES).is_dir():
            return Answerer(model, sentences, None)
        eyes = read_model(CLIPVisionModel, folder / EYES, dtype)
    torch.nn.Module.to(eyes, model.device)
    return Answerer(model, sentences, RegionEncoder(eyes))
