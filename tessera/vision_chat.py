"""A trained language model with eyes in use: pictures and words in, words out.

chat = tessera.load("runs/llava/model")  # or a folder of LlavaForConditionalGeneration, or "mini/llava"
chat.caption(image), chat.answer([[left, right]], "what differs?"), chat.chat(turns)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tessera.cards import CARD, read_card, write_card
from tessera.data.conversation import ConversationBuilder
from tessera.data.images import Fit, Pixels
from tessera.data.readers.llava import TAG, conversation
from tessera.data.sample import Image, Segment, Still, Text
from tessera.data.sequence import Sequence as Tokens
from tessera.data.tasks import CAPTION_REQUESTS
from tessera.data.tiling import SheetPixels, TiledPixels, places
from tessera.errors import CheckpointError, UserError, reason
from tessera.evaluate.posthoc import label_probabilities, label_words, language_prior, post_hoc, shares
from tessera.files import atomic_folder
from tessera.generate.debias import Debiasing
from tessera.generate.meaningless import check_kind
from tessera.generate.prompts import first_scores, replies
from tessera.models.folder import read_folder
from tessera.models.lvlm import LVLMForConditionalGeneration, load_llava, save_llava
from tessera.models.lvlm.llava import TYPES, misfit, published_strategy
from tessera.vision.hf import PublishedBackbone
from tessera.weights import model_type, write_model

KIND = "vision-chat"
TEMPLATE = "chat_template.jinja"

Shown = Still | Sequence[Still]
"""A picture, or several that one question is about."""


@dataclass
class VisionChat:
    """An LVLMForConditionalGeneration with what it reads by.

    Args:
        tokenizer: that of its language model, with a chat template and the token that stands for a picture.
        pixels: how pictures enter; `TiledPixels` for those of any shape, `SheetPixels` where the model shows them on
            sheets.
        needs_picture: it has learned from dialogues with pictures alone, and is asked about nothing else.
        debias: takes what the model says without a meaningful picture off its answers; each is then about a picture.
            It is no part of the folder.

    Raises:
        UserError: the tokenizer has no chat template, or not the model's image token.
    """

    model: LVLMForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    pixels: Pixels
    needs_picture: bool = False
    debias: Debiasing | None = None

    abilities: ClassVar[tuple[str, ...]] = ("caption", "ask", "chat", "evaluate")

    def __post_init__(self) -> None:
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"the tokenizer of this language model has no chat template; write one as {TEMPLATE} beside it, or set"
                " tokenizer.chat_template, for instance to tessera.data.conversation.LLAVA"
            )
        number = self.model.config.image_token_id
        token = self.tokenizer.convert_ids_to_tokens(number) if number < len(self.tokenizer) else None
        if not isinstance(token, str):
            raise UserError(f"the tokenizer has no token of number {number}, which stands for a picture in this model")
        count = places(self.pixels, self.model.num_image_tokens())
        if self.model.sheets is not None:
            count = lambda image: self.model.num_picture_tokens(*reversed(image.pil().size))  # noqa: E731
        # No limit here: `generate` says by how much a prompt is too long for the language model.
        self.builder = ConversationBuilder(self.tokenizer, count, sys.maxsize, image_token=token)

    @overload
    def caption(self, images: Still) -> str: ...
    @overload
    def caption(self, images: list[Still]) -> list[str]: ...
    def caption(self, images):
        """A sentence about each picture."""
        return self.answer(images, CAPTION_REQUESTS[0])

    @overload
    def answer(self, images: Still, questions: str, max_new_tokens: int = ...) -> str: ...
    @overload
    def answer(self, images: list[Shown], questions: str | list[str], max_new_tokens: int = ...) -> list[str]: ...
    def answer(self, images, questions, max_new_tokens=64):
        """What the model says of each picture, asked the question beside it, or the one question.

        Args:
            images: a picture, or a list in which each item is one, or several that one question is about.
            questions: `<image>` in one says where each of its pictures stands; else they stand before it.

        Raises:
            UserError: other numbers of pictures and questions, no picture for a model that needs one, or too long.
            BadSample: other numbers of pictures and of `<image>` tags, an empty question, or an unreadable picture.
        """
        single = not isinstance(images, list | tuple)
        shown = [images] if single else list(images)
        asked = [questions] * len(shown) if isinstance(questions, str) else list(questions)
        answers = self.replies(_dialogues(shown, asked), max_new_tokens=max_new_tokens)
        return answers[0] if single else answers

    def weigh(
        self, images: Sequence[Shown], questions: Sequence[str], labels: Sequence[str], calibrate: str | None = None
    ) -> np.ndarray:
        """How likely each of K labels is as the answer to each of n questions, among them alone: [n, K], rows sum to 1.

        Args:
            labels: of one token each, such as "yes" and "no".
            calibrate: divide by how likely they are with this meaningless picture, one of
                `tessera.generate.meaningless.KINDS`; see `tessera.evaluate.posthoc`.

        Raises:
            UserError, BadSample: as `answer`, `meaningless` and `label_words`.
        """
        words = label_words(self.tokenizer, labels)
        prompts = self._prompts(_dialogues(images, questions))

        def likely(blind: str | None = None) -> torch.Tensor:
            return label_probabilities(first_scores(self.model, self.tokenizer, prompts, self.pixels, blind), words)

        if calibrate is None:
            return shares(likely()).numpy()
        check_kind(calibrate)
        blind = ("none", "unk") if calibrate == "both" else (calibrate,)
        return post_hoc(likely(), language_prior([likely(one) for one in blind])).numpy()

    def chat(self, turns: Sequence[Segment], *, max_new_tokens: int = 128, **options: Any) -> list[str]:
        """The assistant's next turn in a dialogue of Text and Image segments with roles, as a list of one text.

        Args:
            options: as of `replies`.

        Raises:
            UserError, BadSample: as `replies`.
        """
        return self.replies([turns], max_new_tokens=max_new_tokens, **options)

    def stream(self, turns: Sequence[Segment], said: Callable[[str], None], **options: Any) -> list[str]:
        """As `chat`; `said` is handed the words as they come."""
        return self.chat(turns, said=said, **options)

    def replies(
        self, dialogues: Sequence[Sequence[Segment]], *, max_new_tokens: int = 128, **options: Any
    ) -> list[str]:
        """The next turn in each of many dialogues.

        Args:
            options: further ones of transformers' `generate`, such as `do_sample`.

        Raises:
            UserError: no picture for a model that needs one or is debiased, or a dialogue too long for the language
                model.
            BadSample: an unknown role, an empty text, a turn with another number of `<image>` tags than of pictures, or
                an unreadable picture.
        """
        options = {"max_new_tokens": max_new_tokens, "debias": self.debias, **options}
        return replies(self.model, self.tokenizer, self._prompts(dialogues), self.pixels, **options)

    def _prompts(self, dialogues: Sequence[Sequence[Segment]]) -> list[Tokens]:
        prompts = [self.builder.prompt(_placed(turns)) for turns in dialogues]
        if self.needs_picture and not all(prompt.images for prompt in prompts):
            raise UserError(
                "this model has learned from dialogues with pictures alone; show it one first, in a chat with --image"
                " PATH or a line `/image PATH`"
            )
        return prompts

    def save(self, folder: str | Path) -> None:
        """Write the model folder: LLaVA's layout, which transformers reads with its processor, where the model fits
        into it, else this library's own."""
        with atomic_folder(folder) as aside:
            self.write(aside)

    def write(self, folder: Path) -> None:
        """`save` into a folder that is there."""
        side, eyes = self.pixels.size, self.model.vision
        square = {"height": side, "width": side}
        cuts = self.pixels.fit == "crop"
        images = CLIPImageProcessorPil(
            size={"shortest_edge": side} if cuts else square, do_center_crop=cuts, crop_size=square,
            image_mean=list(self.pixels.mean), image_std=list(self.pixels.std),
        )  # fmt: skip
        if misfit(self.model) is None:
            save_llava(self.model, folder)
            assert isinstance(eyes, PublishedBackbone)
            sheets = isinstance(self.pixels, SheetPixels)
            kind: Any = LlavaNextProcessor if sheets else LlavaProcessor
            processor = kind(
                self.pixels.processor() if isinstance(self.pixels, SheetPixels) else images, self.tokenizer,
                patch_size=eyes.config.vision_config.patch_size, chat_template=self.tokenizer.chat_template,
                vision_feature_select_strategy=published_strategy(self.model), image_token=self.builder.image_token,
                num_additional_image_tokens=int(eyes.class_token),
            )  # fmt: skip
            processor.save_pretrained(folder)
        else:
            write_model(self.model, folder)
            self.tokenizer.save_pretrained(folder)
            images.save_pretrained(folder)
        tiles = self.pixels.most if isinstance(self.pixels, TiledPixels) else None
        write_card(folder, KIND, needs_picture=self.needs_picture, tiles=tiles)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> VisionChat:
    """What `VisionChat.save` wrote, or a folder of LLaVA or LLaVA-NeXT as transformers writes it, with its processor.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, one of another kind or version, or a part that is damaged, pickled or does not
            fit.
        UserError: as `VisionChat`.
    """
    folder = Path(folder)
    card = read_card(folder, KIND) if (folder / CARD).is_file() else {}
    if model_type(folder) in TYPES:
        model = load_llava(folder, dtype)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.nn.Module.to(model, place)
    else:
        model = read_folder(folder, LVLMForConditionalGeneration, dtype, device)
    tokenizer: PreTrainedTokenizerFast = _part(AutoTokenizer, folder)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _older_template(folder)
    pixels = _pixels(folder, model, card.get("tiles"))
    return VisionChat(model, tokenizer, pixels, bool(card.get("needs_picture")))


def _part(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the libraries raise many kinds
        what = "tokenizer" if kind is AutoTokenizer else "image processor"
        raise CheckpointError(f"the {what} in {folder} cannot be loaded: {reason(error)}") from error


def _older_template(folder: Path) -> str | None:
    """The processor's template, where LLaVA's folders once had it."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # then there is none
        return str(json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"])
    return None


def _pixels(folder: Path, model: LVLMForConditionalGeneration, tiles: int | None) -> Pixels:
    """As the image processor in `folder` says, for the encoder of `model`."""
    given, side = _part(AutoImageProcessor, folder), int(model.config.vision_config.image_size)
    square = {"height": side, "width": side}
    brought, cut = _sides(given.size), _sides(given.crop_size if getattr(given, "do_center_crop", False) else None)
    fit: Fit
    if brought == {"shortest_edge": side} and cut == square:
        fit = "crop"
    elif brought == square and cut in ({}, square):
        fit = "squash"
    else:
        raise CheckpointError(
            f"the image processor in {folder} brings pictures to {brought}, cut to {cut or 'nothing'}, and its encoder"
            f" reads {side} x {side}; give size and crop_size of {side}"
        )
    mean, std = tuple(given.image_mean), tuple(given.image_std)
    if model.sheets is not None:
        return SheetPixels(side, mean, std, pinpoints=tuple((high, wide) for high, wide in model.sheets.pinpoints))
    return TiledPixels(side, mean, std, fit=fit, most=tiles) if tiles else Pixels(side, mean, std, fit=fit)


def _sides(size: Any) -> dict[str, int]:
    """What a size of transformers sets."""
    return {name: value for name, value in dict(size or {}).items() if value is not None}


def _dialogues(shown: Sequence[Shown], asked: Sequence[str]) -> list[list[Segment]]:
    """A dialogue of each question with its pictures before it. Raises UserError where their numbers differ."""
    if len(asked) != len(shown):
        raise UserError(f"{len(shown)} pictures and {len(asked)} questions; give one question for each picture")
    found: list[list[Segment]] = []
    for some, text in zip(shown, asked, strict=True):
        pictures: Any = some if isinstance(some, list | tuple) else [some]
        found.append([*(Image(one, False, role="user") for one in pictures), Text(text, False, "user")])
    return found


def _placed(turns: Sequence[Segment]) -> list[Segment]:
    """`turns`, only read, with the pictures of a turn where its `<image>` tags stand, if it has any.

    Raises:
        BadSample: it has another number of them than of pictures.
    """
    placed: list[Segment] = []
    for role, run in groupby(turns, key=lambda segment: getattr(segment, "role", None)):
        segments = list(run)
        texts = [segment.text for segment in segments if isinstance(segment, Text)]
        if any(TAG in text for text in texts):
            images = [(one.key or "", one.source) for one in segments if isinstance(one, Image)]
            segments = list(conversation([{"role": role or "user", "value": "\n".join(texts)}], images))
        placed += segments
    return placed
