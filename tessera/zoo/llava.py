"""Recipe of `mini/llava`: mini/clip's eyes, a connector of two layers and mini/lm, which learn to talk about drawn
scenes, to name emoji and, where its files are given, to say whether sentences of NLVR are true of their pictures.

As LLaVA does it: first the connector from captions, then connector and language model from dialogues, the second by
adapters. The eyes stay as they are. The connector starts by telling sketches, which mini/lm reads already, and
dialogues are written as mini/lm knows them.

Shape legend: M pictures; N tokens of width C each; W words of a sketch; d width of the language model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image as PIL
from torch import nn

from tessera.connect.connectors import PixelShuffleMlp
from tessera.data.conversation import ConversationBuilder
from tessera.data.loader import Loader
from tessera.data.mixture import Mixture
from tessera.data.packing import Packer
from tessera.data.readers.nlvr import Form, Statements
from tessera.data.sequence import CLOSE, OPEN, PLACE, SYSTEM
from tessera.data.source import Split
from tessera.data.tasks import Mapped, caption, chat
from tessera.data.worlds import open_world
from tessera.evaluate.emoji_suite import recall_of_names
from tessera.evaluate.hallucination import evaluate_probes
from tessera.evaluate.intervals import Estimate, exact_binomial
from tessera.evaluate.likelihood import log_likelihoods
from tessera.evaluate.scenes_suite import evaluate_scenes
from tessera.models.adapters import add_lora
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.train.lvlm import NextWord
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.vision_chat import VisionChat
from tessera.zoo.parts import load_tokenizer
from tessera.zoo.reading import sketchable, start_connector
from tessera.zoo.recipe import Recipe
from tessera.zoo.sketches import SIDE, sketches, word_ids
from tessera.zoo.talk import talk
from tessera.zoo.upon import assemble, load, pixels, write

VISION, LANGUAGE = "mini/clip", "mini/lm"
# The connector reads an early layer, which knows where things are, beside the last, which knows what they are; four
# neighbours as one token, which sees as much of a picture as a place of a sketch tells.
FIELDS = {"vision_feature_layer": [1, -1], "connector": "pixel-shuffle-mlp"}
# As mini/lm has read dialogues: a picture between its two marks, with no space before it.
TEMPLATE = (
    "{{ bos_token }}{% if not messages or messages[0]['role'] != 'system' %}" + SYSTEM + "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '' if loop.previtem is defined and loop.previtem['role'] == 'assistant' else ' ' }}USER:"
    "{{ (' ' + message['content']) | replace('\n" + PLACE + "', '" + PLACE + "') | replace(' " + PLACE + "', '" + PLACE
    + "') | replace('" + PLACE + "\n', '" + PLACE + " ') | replace('" + PLACE + "', '" + OPEN + PLACE + CLOSE + "') }}"
    "{% else %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)  # fmt: skip
TOLD = 4000  # pictures of which the connector tells sketches before its first step
RANK = 16  # of the language model's adapters
ROWS, ROW_LENGTH = 8, 512
CONNECT = 0.1  # share of the steps in which the connector learns alone
# What the demonstration of VL-GPT asks of its captions and answers.
GATES = {"caption, 1-2 objects: every colour and shape": 0.85, "questions, all types": 0.85}
PICTURES = 200  # of the held-out scores' first part
TRAIN, TEST = "nlvr-dev.tar", "nlvr-test.tar"  # its training sentences have no pictures of this form


def new_model() -> LVLMForConditionalGeneration:
    """A connector that tells sketches, between trained parts, the language model with adapters that change nothing."""
    model = assemble(VISION, LANGUAGE, FIELDS)
    model.vision.requires_grad_(False)
    _start(model)
    add_lora(model.language_model, rank=RANK, alpha=2 * RANK, head=True)  # no sketch was ever "true" or "false"
    return model


def _start(model: LVLMForConditionalGeneration) -> None:
    images = sketchable([], TOLD)
    looked, grid = NextWord(model, pixels(model)).look(images)
    connector = model.connector
    assert isinstance(connector, PixelShuffleMlp) and connector.left(grid) == (SIDE, SIDE)
    with torch.no_grad():
        squares = connector.norm(connector.squares(torch.cat(looked), grid))
    words = cast(nn.Embedding, model.get_input_embeddings()).weight.detach()[word_ids(load_tokenizer(LANGUAGE))]
    start_connector(connector.mlp, squares, sketches(images), words)


def captions(split: Split) -> Mixture:
    """Pictures of both worlds, each with a request for a caption and one."""
    scenes, emoji = (open_world(name).source("pairs", split) for name in ("scenes", "emoji"))
    return Mixture([(Mapped(scenes, caption), 1.0), (Mapped(emoji, caption), 1.0)])


def dialogues(split: Split, nlvr: Path | None = None) -> Mixture:
    """Conversations of several questions about a scene, captions, the names of emoji, and statements about three
    pictures that are true or false, of the tar file `nlvr`."""
    scenes, emoji = open_world("scenes"), open_world("emoji")
    parts: list[tuple[Any, float]] = [
        (Mapped(scenes.source("conversations", split), talk), 3.0),
        (Mapped(scenes.source("pairs", split), caption), 0.5),
        (Mapped(emoji.source("pairs", split), caption), 1.0),
        (Mapped(emoji.source("names", split), chat), 0.5),
    ]
    return Mixture(parts if nlvr is None else [*parts, (Mapped(Statements(nlvr, form="boxes"), chat), 2.0)])


def stages(seed: int, steps: int, data: Path | None = None) -> Iterator[Stage]:
    """The connector alone, then with the language model's adapters.

    Args:
        data: the folder of NLVR's files.
    """
    model = new_model()
    tokenizer: Any = load_tokenizer(LANGUAGE)
    builder = ConversationBuilder(tokenizer, model.num_image_tokens(), ROW_LENGTH, chat_template=TEMPLATE)
    packer = Packer(builder, ROWS, ROW_LENGTH, pad_id=tokenizer.pad_token_id)
    objective = NextWord(model, pixels(model))
    first = max(1, round(CONNECT * steps))
    shared: dict[str, Any] = {"model": model, "objective": objective, "optimiser": Optimiser(lr=5e-4)}
    yield Stage(
        name="connect", steps=first, trainable=("connector.*",),
        loader=Loader(captions("train"), packer, seed=seed), **shared,
    )  # fmt: skip
    if steps > first:
        talk = dialogues("train", None if data is None else data / TRAIN)
        yield Stage(
            name="instruct", steps=steps - first, trainable=("connector.*", "*lora_*"),
            loader=Loader(talk, packer, seed=seed), **shared,
        )  # fmt: skip


def save(model: nn.Module, folder: Path) -> None:
    """What it has learned beside its parts."""
    assert isinstance(model, LVLMForConditionalGeneration)
    write(
        model, folder, vision=VISION, language=LANGUAGE, fields=FIELDS, template=TEMPLATE, needs_picture=True
    )  # fmt: skip


def scores(folder: Path, data: Path | None = None, pictures: int = PICTURES) -> dict[str, Estimate]:
    """Held-out captions, questions by type beside the majority's answer, probes of what is not there, names of emoji
    beside chance, and NLVR's other file beside blank pictures and the majority's answer."""
    model = load(folder)
    suites = (partial(evaluate_scenes, model), partial(evaluate_probes, model))
    found = {name: score for suite in suites for name, score in suite(pictures).scores.items()}
    found |= recall_of_names(partial(_likely, model), pictures).scores
    return found if data is None else found | statement_scores(model, data / TEST, 5 * pictures)


@torch.no_grad()
def _likely(model: VisionChat, pictures: Sequence[PIL.Image], asked: str, answers: Sequence[str]) -> np.ndarray:
    seen = torch.from_numpy(np.stack([model.pixels.one(picture) for picture in pictures]))
    return log_likelihoods(model.model, model.builder, model.model.encode_images(seen), asked, answers)


def statement_scores(model: VisionChat, file: Path, examples: int) -> dict[str, Estimate]:
    """Shares of the statements in `file` that are told right, one arrangement of each example."""
    found: dict[str, Estimate] = {}
    forms: dict[str, Form] = {"": "boxes", ", blank pictures": "blank"}
    for name, form in forms.items():
        source = Statements(file, form=form, once=True, examples=examples)
        samples = [source[place] for place in range(len(source))]
        said = model.replies([sample.segments[:-1] for sample in samples], max_new_tokens=4)
        truths = [str(bool(sample.meta["label"])).lower() for sample in samples]
        right = sum(one.lower() == truth for one, truth in zip(said, truths, strict=True))
        found[f"NLVR statements{name}"] = exact_binomial(right, len(truths))
        most = max(truths.count("true"), truths.count("false"))
        found["NLVR statements: majority answer"] = exact_binomial(most, len(truths))
    return found


def reading(data: Path) -> Recipe:
    """The recipe with NLVR's statements among its dialogues and its scores.

    Args:
        data: the folder of nlvr-dev.tar, which it learns from, and nlvr-test.tar, which it is judged by.

    Raises:
        DataError: one of them is not there.
    """
    for name in (TRAIN, TEST):
        Statements(data / name, examples=1)
    about = f"{RECIPE.about}, and which were asked whether statements of NLVR (CC BY 4.0) are true"
    return replace(RECIPE, about=about, stage=partial(stages, data=data), scores=partial(scores, data=data))


RECIPE = Recipe(
    name="llava",
    about="mini/clip's eyes, a connector and mini/lm, which talk about drawn scenes and were shown the names of emoji",
    steps=1200, stage=stages, save=save, scores=scores, gates=GATES, reading=reading,
)  # fmt: skip
