"""Frozen encoders of parts and folders, with the way that pictures enter them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import CLIPConfig, CLIPTextModelWithProjection

from tessera.data.images import Pixels
from tessera.layers.attention import NAME as ATTENTION
from tessera.models.classifier import IMAGENET
from tessera.models.policy.senses import Senses
from tessera.objectives.perceptual import Perceptual
from tessera.vision.base import VisionBackbone
from tessera.vision.registry import create
from tessera.weights import model_type
from tessera.zoo.foundation import read_part, read_tokenizer
from tessera.zoo.parts import locate, quiet

PREPROCESSOR = "preprocessor_config.json"


def read_eyes(name: str) -> tuple[VisionBackbone, Pixels]:
    """An image encoder by the name of a part or its folder, in float32, and its pictures: the size that its positions
    are made for, the means and spreads that its preprocessor_config.json names, or ImageNet's.

    Raises:
        UserError, CheckpointError: as `locate` and `create`.
    """
    folder = Path(locate(name))
    file = folder / PREPROCESSOR
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    with quiet():
        eyes = create(str(folder)).float()
    mean, std = (tuple(said.get(f"image_{part}", IMAGENET[part])) for part in ("mean", "std"))
    return eyes, Pixels(eyes.config.image_size, mean, std)


def read_perceptual(name: str) -> Perceptual:
    """The perceptual loss by any image encoder, with the pictures that `read_eyes` finds it to have learned from.

    Raises:
        UserError, CheckpointError: as `read_eyes`.
    """
    eyes, pixels = read_eyes(name)
    return Perceptual(eyes, pixels.mean, pixels.std)


def read_senses(vision: str, text: str) -> Senses:
    """Both encoders by name or folder; the words' is the text half of a CLIP with its projection.

    Raises:
        UserError: an unknown mini part.
        CheckpointError: a folder that is absent, damaged, pickled or of another kind.
    """
    eyes, pixels = read_eyes(vision)
    where = locate(text)
    with quiet():
        words = read_part(CLIPTextModelWithProjection, where, eyes.dtype, attn_implementation=ATTENTION, **_half(where))
        return Senses(eyes, words, read_tokenizer(where), pixels)


def _half(folder: str) -> dict[str, Any]:
    """The configuration of the text half of a whole CLIP, whose own says nothing of the width that both share."""
    if not Path(folder).is_dir() or model_type(Path(folder)) != "clip":
        return {}
    whole: Any = CLIPConfig.from_pretrained(folder)
    whole.text_config.projection_dim = whole.projection_dim
    return {"config": whole.text_config}


def save_senses(senses: Senses, vision: Path, text: Path) -> None:
    """Write both so that `read_senses` finds them in these folders."""
    senses.vision.save_pretrained(vision)
    said = {"image_mean": list(senses.pixels.mean), "image_std": list(senses.pixels.std)}
    (vision / PREPROCESSOR).write_text(json.dumps(said), encoding="utf-8")
    senses.text.save_pretrained(text)
    senses.tokenizer.save_pretrained(text)
