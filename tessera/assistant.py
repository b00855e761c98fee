"""A trained model with what it needs to read and to paint: pictures and words in, pictures and words out.

assistant = tessera.load("runs/demo/model")
assistant.caption(image), assistant.answer(image, "How many stars?"), assistant.draw("a red star at the top left")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, overload

import numpy as np
import torch
from PIL import Image as PIL
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tessera.cards import read_card, write_card
from tessera.data.images import Pixels
from tessera.data.quality import check_text
from tessera.data.sample import Image, Sample, Segment, Text
from tessera.data.sequence import CLOSE, OPEN, PLACE, SequenceBuilder
from tessera.data.sequence import Sequence as Tokens
from tessera.data.tasks import CAPTION_REQUESTS, DRAW_ANSWERS, DRAW_REQUESTS
from tessera.errors import CheckpointError, UserError
from tessera.files import atomic_folder
from tessera.generate.interleaved import Images, generate
from tessera.generate.reply import Prompt, Reply, Words
from tessera.models.diffusion.painter import Painter
from tessera.models.folder import read_folder
from tessera.models.vlgpt.configuration import VLGPTConfig
from tessera.models.vlgpt.modeling import VLGPTForConditionalGeneration
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import quiet

KIND = "vl-gpt"
BATCH = 64  # prompts that are continued together

Picture = PIL.Image | np.ndarray | str | Path | bytes


@dataclass
class Assistant:
    """VL-GPT in use. All calls take one input or a list of them, and answer in kind.

    Args:
        painter: the frozen diffusion model that turns conditions into pixels.
    """

    model: VLGPTForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast
    pixels: Pixels
    painter: Painter

    abilities: ClassVar[tuple[str, ...]] = ("caption", "ask", "draw", "chat", "embed", "evaluate")

    def __post_init__(self) -> None:
        positions = self.model.config.num_image_positions
        self.builder = SequenceBuilder(self.tokenizer, positions)

    @overload
    def caption(self, images: Picture) -> str: ...
    @overload
    def caption(self, images: list[Picture]) -> list[str]: ...
    def caption(self, images):
        """A sentence about each picture."""
        return self.answer(images, CAPTION_REQUESTS[0])

    @overload
    def answer(self, images: Picture, questions: str) -> str: ...
    @overload
    def answer(self, images: list[Picture | list[Picture]], questions: str | list[str]) -> list[str]: ...
    def answer(self, images, questions, max_new_tokens: int = 64):
        """What the model says of each picture, or of several that one question is about, asked the question beside it,
        or the one question."""
        single = not isinstance(images, list | tuple)
        pictures = [images] if single else list(images)
        asked = [questions] * len(pictures) if isinstance(questions, str) else list(questions)
        if len(asked) != len(pictures):
            raise UserError(f"{len(pictures)} pictures and {len(asked)} questions; give one question for each picture")
        prompts = []
        for given, text in zip(pictures, asked, strict=True):
            shown = given if isinstance(given, list | tuple) else [given]
            images = [Image(picture, learned=False, role="user") for picture in shown]
            prompts.append(self.builder.prompt((*images, Text(text, learned=False, role="user"))))
        answers = [reply.text for reply in self._continue(prompts, "never", max_new_tokens)]
        return answers[0] if single else answers

    @overload
    def draw(self, texts: str, *, seed: int = 0) -> PIL.Image: ...
    @overload
    def draw(self, texts: list[str], *, seed: int = 0) -> list[PIL.Image]: ...
    def draw(self, texts, *, seed: int = 0):
        """A picture of each text. The same text and seed give the same picture, whatever else is drawn beside it."""
        single = isinstance(texts, str)
        asked = [texts] if single else list(texts)
        prompts = [self.draw_prompt(text) for text in asked]
        embeds = torch.stack([reply.pictures[0] for reply in self._continue(prompts, "allowed", 0)])
        drawn = self.paint(embeds, seed=seed)
        return drawn[0] if single else drawn

    def draw_prompt(self, text: str) -> Tokens:
        """What `draw` starts from. Raises BadSample where `text` is empty or too long."""
        asked = Text(DRAW_REQUESTS[0].format(check_text(text)), learned=False, role="user")
        return self.builder.prompt((asked,), DRAW_ANSWERS[0], draw=True)

    def reconstruct(self, images: Sequence[Picture], *, seed: int = 0) -> list[PIL.Image]:
        """Pictures through the image tokenizer, its detokenizer and the painter."""
        return self.paint(self.encode(images), seed=seed)

    def chat(self, turns: Sequence[Segment], *, seed: int = 0, max_new_tokens: int = 128) -> list[str | PIL.Image]:
        """The assistant's next turn in a dialogue of Text and Image segments with roles."""
        prompt = self.builder.prompt([_read_only(turn) for turn in turns])
        return self._show(self._continue([prompt], "allowed", max_new_tokens)[0], seed)

    def generate(self, sample: Sample, *, seed: int = 0, max_new_tokens: int = 128) -> list[str | PIL.Image]:
        """What comes after a page of words and pictures: words and pictures."""
        prompt = self.builder.prompt([_read_only(segment) for segment in sample.segments])
        return self._show(self._continue([prompt], "allowed", max_new_tokens)[0], seed)

    @torch.no_grad()
    def embed(self, inputs: Sequence[Picture] | Sequence[str]) -> np.ndarray:
        """Feature vectors float32 [n, d]: the last hidden states of the language model over each input, averaged.

        A str is a text here; give a picture as an image, an array, a Path or bytes.
        """
        rows = []
        for given in inputs:
            segment = Text(given) if isinstance(given, str) else Image(given)
            tokens = self.builder.prompt((segment,))
            pictures = [image.pil() for image in tokens.images]
            embeds = self.encode(pictures) if pictures else None
            ids = torch.from_numpy(tokens.input_ids).long()[None].to(self.model.device)
            rows.append(self.model(ids, image_embeds=embeds).hidden[0, 1:].mean(dim=0))
        return torch.stack(rows).float().cpu().numpy()

    @torch.no_grad()
    def encode(self, images: Sequence[Picture]) -> Tensor:
        """Visual embeddings [M, N, d] of M pictures."""
        arrays = np.stack([self.pixels.one(Image(image).pil()) for image in images])
        return self.model.encode_images(torch.from_numpy(arrays).to(self.model.device, self.model.dtype))

    @torch.no_grad()
    def paint(self, embeds: Tensor, *, seed: int = 0) -> list[PIL.Image]:
        """Pictures of visual embeddings [M, N, d]."""
        found = []
        for part in embeds.split(BATCH):
            conditions = self.model.decode_images(part)
            text, image = (condition.to(self.painter.null_text) for condition in (conditions.text, conditions.image))
            if self.model.image_tokenizer.config.image_condition == "encoder":
                image = self.painter.image_condition(image)
            generators = [torch.Generator().manual_seed(seed) for _ in part]
            found += list(
                self.painter.paint(
                    text, image, steps=self.model.config.draw_steps,
                    guidance=self.model.config.draw_guidance, generator=generators,
                )
            )  # fmt: skip
        return [PIL.fromarray(picture) for picture in found]

    def _continue(self, prompts: Sequence[Tokens], images: Images, max_new_tokens: int) -> list[Reply]:
        found: list[Reply] = []
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            counts = [len(prompt.images) for prompt in part]
            shown = [image.pil() for prompt in part for image in prompt.images]
            embeds = iter(self.encode(shown).split(counts)) if shown else None
            found += generate(
                self.model,
                [Prompt(prompt.input_ids.tolist(), next(embeds) if embeds else None) for prompt in part],
                max_new_tokens=max_new_tokens, images=images, tokenizer=self.tokenizer,
            )  # fmt: skip
        return found

    def _show(self, reply: Reply, seed: int) -> list[str | PIL.Image]:
        shown: list[str | PIL.Image] = []
        for part in reply.segments:
            if isinstance(part, Words):
                shown.append((part.text or "").strip())
            else:
                shown.append(self.paint(part.embeds[None], seed=seed)[0])
        return shown

    def save(self, folder: str | Path) -> None:
        """Write the model folder: VL-GPT and tokenizer as transformers lays them out, painter/ as diffusers does."""
        with atomic_folder(folder) as aside, quiet():
            self.model.save_pretrained(aside)
            self.tokenizer.save_pretrained(aside)
            self.painter.save_pretrained(aside / "painter")
            write_card(aside, KIND)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> Assistant:
    """The assistant that `Assistant.save` wrote.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: no such folder, a format of another version, a configuration with an unknown key or a wrong
            value, or a part that is damaged, pickled or does not fit.
    """
    folder = Path(folder)
    read_card(folder, KIND)
    with quiet():
        model = read_folder(folder, VLGPTForConditionalGeneration, dtype, device)
        tokenizer = read_tokenizer(folder)
        _check_tokenizer(tokenizer, model.config, folder)
        painter = Painter.from_pretrained(folder / "painter", dtype)
    return Assistant(model, tokenizer, Pixels(model.config.vision_config.image_size), painter.to(model.device))


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast, config: VLGPTConfig, folder: Path) -> None:
    vocabulary = tokenizer.get_vocab()
    ids = {OPEN: config.image_start_id, CLOSE: config.image_end_id, PLACE: config.image_placeholder_id}
    for token, number in ids.items():
        if vocabulary.get(token) != number:
            raise CheckpointError(
                f"the tokenizer in {folder} is not that of its model: {token} has number {vocabulary.get(token)} there"
                f" and {number} in config.json"
            )


def _read_only(segment: Segment) -> Segment:
    if isinstance(segment, Text):
        return Text(segment.text, learned=False, role=segment.role)
    if isinstance(segment, Image):
        return Image(segment.source, learned=False, key=segment.key, role=segment.role)
    raise UserError(f"a {type(segment).__name__} segment has no place in a dialogue")
