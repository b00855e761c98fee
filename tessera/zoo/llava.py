"""Recipe of `mini/llava`: mini/clip's eyes, a connector of two layers and mini/lm, which learn to talk about drawn
scenes and to name emoji, as LLaVA does: first the connector from captions, then connector and language model from
dialogues. The eyes stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessera.data.conversation import LLAVA, ConversationBuilder
from tessera.data.images import Pixels
from tessera.data.loader import Loader
from tessera.data.mixture import Mixture
from tessera.data.packing import Packer
from tessera.data.sequence import PLACE
from tessera.data.source import Split
from tessera.data.tasks import Mapped, caption, chat
from tessera.data.worlds import open_world
from tessera.evaluate.hallucination import evaluate_probes
from tessera.evaluate.intervals import Estimate
from tessera.evaluate.scenes_suite import evaluate_scenes
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.train.lvlm import FrozenEyes
from tessera.train.optim import Optimiser
from tessera.train.stage import Stage
from tessera.vision_chat import VisionChat, load
from tessera.zoo.parts import load_tokenizer, locate, quiet
from tessera.zoo.recipe import Recipe

VISION, LANGUAGE = "mini/clip", "mini/lm"
# The connector reads an early layer, which knows where things are, beside the last, which knows what they are.
LAYERS = [1, -1]
ROWS, ROW_LENGTH = 8, 512
CONNECT = 0.15  # share of the steps in which the connector learns alone
PICTURES = 200  # of the held-out scores' first part


def new_model() -> LVLMForConditionalGeneration:
    """A new connector between trained parts; PyTorch's generator makes its weights."""
    tokenizer = load_tokenizer(LANGUAGE)
    with quiet():
        model = LVLMForConditionalGeneration.from_parts(
            locate(VISION), locate(LANGUAGE), vision_feature_layer=LAYERS,
            image_token_id=tokenizer.convert_tokens_to_ids(PLACE),
        )  # fmt: skip
    model.vision.requires_grad_(False)
    return model


def captions(split: Split) -> Mixture:
    """Pictures of both worlds, each with a request for a caption and one."""
    scenes, emoji = (open_world(name).source("pairs", split) for name in ("scenes", "emoji"))
    return Mixture([(Mapped(scenes, caption), 3.0), (Mapped(emoji, caption), 1.0)])


def dialogues(split: Split) -> Mixture:
    """Conversations of several questions about a scene, captions, and the names of emoji."""
    scenes, emoji = open_world("scenes"), open_world("emoji")
    return Mixture(
        [
            (Mapped(scenes.source("conversations", split), chat), 4.0),
            (Mapped(scenes.source("pairs", split), caption), 1.0),
            (Mapped(emoji.source("names", split), chat), 0.5),
        ]
    )


def stages(seed: int, steps: int) -> Iterator[Stage]:
    """The connector alone, then with the language model."""
    model = new_model()
    tokenizer: Any = load_tokenizer(LANGUAGE)
    builder = ConversationBuilder(tokenizer, model.num_image_tokens(), ROW_LENGTH, chat_template=LLAVA)
    packer = Packer(builder, ROWS, ROW_LENGTH, pad_id=tokenizer.pad_token_id)
    objective = FrozenEyes(model, pixels(model))
    first = max(1, round(CONNECT * steps))
    shared: dict[str, Any] = {"model": model, "objective": objective, "optimiser": Optimiser(kind="muon", lr=1.5e-3)}
    yield Stage(
        name="connect", steps=first, trainable=("connector.*",),
        loader=Loader(captions("train"), packer, seed=seed), **shared,
    )  # fmt: skip
    if steps > first:
        yield Stage(
            name="instruct", steps=steps - first, trainable=("connector.*", "language_model.*"),
            loader=Loader(dialogues("train"), packer, seed=seed), **shared,
        )  # fmt: skip


def pixels(model: LVLMForConditionalGeneration) -> Pixels:
    """How pictures enter its eyes."""
    return Pixels(int(model.config.vision_config.image_size))


def save(model: nn.Module, folder: Path) -> None:
    """Weights in bf16, in LLaVA's layout, with processor and card."""
    assert isinstance(model, LVLMForConditionalGeneration)
    nn.Module.to(model, torch.bfloat16)
    tokenizer = load_tokenizer(LANGUAGE)
    tokenizer.chat_template = LLAVA
    with quiet():
        VisionChat(model, tokenizer, pixels(model), needs_picture=True).write(folder)


def scores(folder: Path, pictures: int = PICTURES) -> dict[str, Estimate]:
    """Held-out captions, questions by type beside the majority's answer, and probes of what is not there."""
    with quiet():
        model = load(folder)
    suites = (partial(evaluate_scenes, model), partial(evaluate_probes, model))
    return {name: score for suite in suites for name, score in suite(pictures).scores.items()}


RECIPE = Recipe(
    name="llava", about="mini/clip's eyes, a connector and mini/lm, which talk about drawn scenes and name emoji",
    steps=600, stage=stages, save=save, scores=scores, gates={},
)  # fmt: skip
