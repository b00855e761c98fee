"""What papers share that train a language model with eyes: its parts by role and which of them learn, how pictures
enter, its words, its captions, its folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoConfig, CLIPImageProcessorPil, PreTrainedModel, PreTrainedTokenizerFast

from tessera.cards import write_card
from tessera.data.conversation import LLAVA, ConversationBuilder
from tessera.data.few import First, Only
from tessera.data.images import Pixels
from tessera.data.quality import Opener
from tessera.data.sample import Image
from tessera.data.sequence import PLACE
from tessera.data.source import Source, World
from tessera.data.tasks import Mapped, caption
from tessera.data.tiling import TiledPixels, places
from tessera.data.worlds import open_world
from tessera.errors import BadSample, CheckpointError, DataError, UserError, reason
from tessera.files import atomic_folder
from tessera.models.adapters import add_lora, merge_adapters
from tessera.models.lvlm import LVLMConfig, LVLMForConditionalGeneration
from tessera.models.lvlm.language import read_language_model
from tessera.papers.settings import check_roles
from tessera.train.optim import Optimiser
from tessera.vision.registry import create
from tessera.weights import write_model
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import locate, quiet

MINI = {"vision": "mini/clip", "language": "mini/lm"}
LOOKED = 20  # samples of each source that are tried before training, at most
KIND = "vision-chat"
# LLaVA trains adapters at ten times the rate of whole weights (finetune_lora.sh), LLaVA-NeXT its encoder at a fifth.
RATES = {"*lora_*": 10.0, "vision.*": 0.2}
How = Literal["frozen", "lora", "full"]

_log = logging.getLogger("tessera.data")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters on every linear layer of a part. The defaults are those of LLaVA's own script.

    Raises:
        UserError: a value that adapters cannot have.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"adapters of rank {self.rank}, alpha {self.alpha} and dropout {self.dropout} cannot be; the first two"
                " are at least 1, the last is a share below 1"
            )


MINI_LORA = Lora(rank=32, alpha=64, dropout=0.0)
TRAINING = (  # what `tessera show` says of the fields of `Learning`
    "what learns beside the connector: --set language=frozen, lora or full, vision=frozen, lora or full; lora.rank,"
    " lora.alpha and lora.dropout are the adapters', which are merged into the saved weights",
    "--set tiles=4 cuts pictures that are larger or of another shape into up to four tiles, and so they are read after",
)


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """How long a stage is, and what an update reads.

    Args:
        rows: packed rows of one update, of all processes together, read in `accumulate` parts.
    """

    steps: int
    rows: int
    accumulate: int = 1
    optimiser: Optimiser

    @property
    def at_once(self) -> int:
        """Rows that are read at once, by all processes together. Raises UserError where they are no whole number."""
        if self.accumulate < 1 or self.rows % self.accumulate:
            raise UserError(f"{self.rows} rows do not divide into {self.accumulate} parts; change one of them")
        return self.rows // self.accumulate


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What a recipe says of the model that it trains: which parts learn beside the new connector, and how it reads.

    Args:
        vision, language: "frozen"; "lora", by adapters, which are merged into the weights when training has ended; or
            "full".
        lora: those adapters.
        tiles: at most so many tiles show a picture that is larger than the encoder's or of another shape, with all of
            it small before them; each takes as many tokens as a picture. 0 shows the whole picture alone.
        layers: of the image encoder, whose states the connector reads; see `LVLMConfig`.
        row_length: positions of a packed row.

    Raises:
        UserError: a negative number of tiles.
    """

    vision: How = "frozen"
    language: How = "full"
    lora: Lora = Lora()
    tiles: int = 0
    layers: int | list[int] = -2
    row_length: int

    def __post_init__(self) -> None:
        if self.tiles < 0:
            raise UserError(f"tiles is {self.tiles}; give 0, for the whole picture alone, or more")

    @property
    def trainable(self) -> tuple[str, ...]:
        """Patterns of what learns, for a Stage."""
        how = {"frozen": (), "lora": ("*lora_*",), "full": ("*",)}
        parts = {"vision": self.vision, "language_model": self.language}
        return ("connector.*", *(f"{part}.{all_of}" for part, chosen in parts.items() for all_of in how[chosen]))

    def fields(self) -> dict[str, Any]:
        """Those of `LVLMConfig`."""
        return {"vision_feature_layer": self.layers}

    def pixels(self, model: LVLMForConditionalGeneration) -> Pixels:
        """How pictures enter `model`."""
        plain = pixels_of(model)
        return TiledPixels(plain.size, most=self.tiles) if self.tiles else plain

    def places(self, model: LVLMForConditionalGeneration) -> int | Callable[[Image], int]:
        """Positions of a picture, for `Parts.builder`."""
        return places(self.pixels(model), model.num_image_tokens())

    def check(self, model: LVLMForConditionalGeneration) -> None:
        """Let `model`, which may lie on the meta device, look at a picture, and see that its tokens fit into a row.

        Raises:
            UserError: they do not, or as `LVLMForConditionalGeneration.visual_features`.
        """
        size = pixels_of(model).size
        model.encode_images(torch.empty(1, 3, size, size, device=model.device))
        needed = model.num_image_tokens() * (1 + self.tiles if self.tiles > 1 else 1)
        if needed >= self.row_length:
            raise UserError(
                f"a picture takes up to {needed} positions and a row has {self.row_length}; raise row_length"
                + (f", or cut pictures into fewer than {self.tiles} tiles" if self.tiles > 1 else "")
            )


@dataclass(frozen=True)
class Parts:
    """An image encoder and a language model, each a name of the zoo or a folder, and the tokenizer of the second with
    what a dialogue with pictures needs."""

    vision: str
    language: str
    tokenizer: PreTrainedTokenizerFast

    @classmethod
    def of(cls, size: str, given: Mapping[str, str]) -> Parts:
        """Those of `--size` and `--parts`.

        Raises:
            UserError: a role that does not exist, or a published part that is not named.
            CheckpointError: no tokenizer lies beside the language model.
        """
        check_roles(given, MINI)
        for role in MINI:
            if size == "published" and role not in given:
                raise UserError(f"published parts do not ship; name the folder of this one: --parts {role}=FOLDER")
        names = {**MINI, **given}
        tokenizer: Any = read_tokenizer(names["language"])
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

    def sketch(self, **fields: Any) -> LVLMForConditionalGeneration:
        """`model` on the meta device, without the weights of its language model: to see beforehand that it can be.

        Raises:
            UserError, CheckpointError: as `LVLMForConditionalGeneration.from_parts`.
        """
        with quiet():
            eyes = create(locate(self.vision))
            try:
                words = AutoConfig.from_pretrained(locate(self.language), local_files_only=True)
            except Exception as error:  # transformers raises many kinds
                raise CheckpointError(f"{self.language} holds no language model: {reason(error)}") from error
        place: Any = self.tokenizer.convert_tokens_to_ids(PLACE)
        with torch.device("meta"):
            return LVLMForConditionalGeneration(
                LVLMConfig(vision_config=eyes.config, text_config=words, image_token_id=place, **fields)
            )

    def learner(self, how: Learning) -> LVLMForConditionalGeneration:
        """`model` as a recipe wants it, with adapters where parts learn by them."""
        model = self.model(**how.fields())
        for part, chosen in ((model.vision, how.vision), (model.language_model, how.language)):
            if chosen == "lora":
                add_lora(part, **asdict(how.lora))
        return model

    def builder(self, positions: int | Callable[[Image], int], max_length: int) -> ConversationBuilder:
        """Samples as the language model reads them, a picture as so many positions."""
        return ConversationBuilder(self.tokenizer, positions, max_length)

    def save(self, model: LVLMForConditionalGeneration, folder: Path, tiles: int = 0) -> None:
        """Write a model folder: weights with their adapters merged, tokenizer with its chat template, image processor,
        card."""
        merge_adapters(model)
        eyes = pixels_of(model)
        side = {"height": eyes.size, "width": eyes.size}
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": eyes.size}, crop_size=side, image_mean=list(eyes.mean), image_std=list(eyes.std)
        )
        with atomic_folder(folder) as aside, quiet():
            write_model(model, aside)
            self.tokenizer.save_pretrained(aside)
            processor.save_pretrained(aside)
            write_card(aside, KIND, tiles=tiles or None)


def pixels_of(model: LVLMForConditionalGeneration) -> Pixels:
    """How pictures enter its eyes, with the mean and spread of CLIP's."""
    return Pixels(int(model.config.vision_config.image_size))


def open_captions(data: Sequence[str], default: World) -> list[tuple[Source, float]]:
    """The captions that `--data` names, each source with as many samples as its share: captioned pictures, asked for in
    a dialogue, or conversations as they are, those about pictures. A sample reads the same each time.

    Raises:
        UserError: a world that has neither.
        DataError: no conversation has a picture, or none of some samples can be read.
    """
    worlds = [open_world(name) for name in data] or [default]
    found: list[tuple[Source, float]] = []
    for world in worlds:
        if "pairs" in world.tasks:
            pairs = world.source("pairs")
            source: Any = First(Mapped(pairs, caption), len(pairs))  # which asks in the same words in every epoch
        elif "conversations" in world.tasks:
            source = _about_pictures(world.source("conversations"))
        else:
            raise UserError(
                f"{world.name} has no captions to learn from, it gives {', '.join(world.tasks)}; give captioned"
                " pictures or conversations"
            )
        _look(source)
        found.append((source, float(len(source))))
    return found


def _about_pictures(source: Source) -> Source:
    """The samples that show a picture, and those that cannot be read, which the loader will name; how many show none is
    said in the log.

    Raises:
        DataError: none does.
    """
    kept = []
    for place in range(len(source)):
        try:
            shown = bool(source[place].images)
        except BadSample:
            shown = True
        kept += [place] if shown else []
    if not kept:
        raise DataError(f"{source.name}: none of {len(source)} samples shows a picture, and captions are of pictures")
    if len(kept) == len(source):
        return source
    blind = len(source) - len(kept)
    _log.warning("%s: %d of %d samples show no picture and are no captions; left out", source.name, blind, len(source))
    return Only(source, kept)


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
