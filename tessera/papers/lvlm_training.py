"""What papers share that train a language model with eyes: its parts by role, its words, its captions, its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import CLIPImageProcessorPil, PreTrainedModel, PreTrainedTokenizerFast

from tessera.cards import write_card
from tessera.data.conversation import LLAVA, ConversationBuilder
from tessera.data.few import First
from tessera.data.images import Pixels
from tessera.data.quality import Opener
from tessera.data.sequence import PLACE
from tessera.data.source import Source, World
from tessera.data.tasks import Mapped, caption
from tessera.data.worlds import open_world
from tessera.errors import BadSample, DataError, UserError
from tessera.files import atomic_folder
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.models.lvlm.language import read_language_model
from tessera.papers.settings import check_roles
from tessera.zoo.parts import load_tokenizer, locate, quiet

MINI = {"vision": "mini/clip", "language": "mini/lm"}
LOOKED = 20  # samples of each source that are tried before training, at most
KIND = "vision-chat"


@dataclass(frozen=True)
class Parts:
    """An image encoder and a language model, each a name of the zoo or a folder, and the tokenizer of the second with
    what a dialogue with pictures needs. The encoder stays as it is in training."""

    vision: str
    language: str
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def of(cls, size: str, given: Mapping[str, str]) -> Parts:
        """Those of `--size` and `--parts`.

        Raises:
            UserError: a role that does not exist, or a published part that is not named.
        """
        check_roles(given, MINI)
        for role in MINI:
            if size == "published" and role not in given:
                raise UserError(f"published parts do not ship; name the folder of this one: --parts {role}=FOLDER")
        names = {**MINI, **given}
        tokenizer: Any = load_tokenizer(names["language"])
        if PLACE not in tokenizer.get_vocab():  # it takes a number after the vocabulary, and needs no row of a table
            tokenizer.add_special_tokens({"additional_special_tokens": [PLACE]}, replace_extra_special_tokens=False)
        tokenizer.chat_template = tokenizer.chat_template or LLAVA
        return cls(names["vision"], names["language"], tokenizer)

    @property
    def pad_id(self) -> int:
        """What fills rows; it is never read."""
        return int(self.tokenizer.pad_token_id or 0)

    def language_model(self) -> PreTrainedModel:
        """The language model alone, with its weights."""
        with quiet():
            return read_language_model(locate(self.language))

    def model(self, **fields: Any) -> LVLMForConditionalGeneration:
        """A new connector between both; PyTorch's generator makes its weights.

        Args:
            fields: those of `LVLMConfig`.
        """
        with quiet():
            model = LVLMForConditionalGeneration.from_parts(
                locate(self.vision),
                locate(self.language),
                image_token_id=self.tokenizer.convert_tokens_to_ids(PLACE),
                **fields,
            )
        model.vision.requires_grad_(False)
        return model

    def builder(self, positions: int, max_length: int) -> ConversationBuilder:
        """Samples as the language model reads them, a picture as so many positions."""
        return ConversationBuilder(self.tokenizer, positions, max_length)

    def save(self, model: LVLMForConditionalGeneration, folder: Path) -> None:
        """Write a model folder: weights, tokenizer with its chat template, image processor, card."""
        eyes = pixels_of(model)
        side = {"height": eyes.size, "width": eyes.size}
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": eyes.size}, crop_size=side, image_mean=list(eyes.mean), image_std=list(eyes.std)
        )
        with atomic_folder(folder) as aside, quiet():
            model.save_pretrained(aside)
            self.tokenizer.save_pretrained(aside)
            processor.save_pretrained(aside)
            write_card(aside, KIND)


def pixels_of(model: LVLMForConditionalGeneration) -> Pixels:
    """How pictures enter its eyes, with the mean and spread of CLIP's."""
    return Pixels(int(model.config.vision_config.image_size))


def open_captions(data: Sequence[str], default: World) -> list[tuple[Source, float]]:
    """The captions that `--data` names, each source with as many samples as its share: captioned pictures, asked for in
    a dialogue, or conversations as they are. A sample reads the same each time.

    Raises:
        UserError: a world that has neither.
        DataError: none of some samples can be read.
    """
    worlds = [open_world(name) for name in data] or [default]
    found: list[tuple[Source, float]] = []
    for world in worlds:
        if "pairs" in world.tasks:
            pairs = world.source("pairs")
            source: Any = First(Mapped(pairs, caption), len(pairs))  # which asks in the same words in every epoch
        elif "conversations" in world.tasks:
            source = world.source("conversations")
        else:
            raise UserError(
                f"{world.name} has no captions to learn from, it gives {', '.join(world.tasks)}; give captioned"
                " pictures or conversations"
            )
        _look(source)
        found.append((source, float(len(source))))
    return found


def _look(source: Source) -> None:
    """Raise DataError where none of some samples can be read: a later stage would stop on that, hours later."""
    opener, last = Opener(), ""
    for index in np.linspace(0, len(source) - 1, LOOKED).astype(int):
        try:
            opener(source[int(index)].images)
            return
        except BadSample as error:
            last = str(error)
    raise DataError(f"{source.name} of {len(source)}: no sample that was tried can be used; the last: {last}")
