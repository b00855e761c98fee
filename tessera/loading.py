"""`tessera.load`: from a model folder to the model in use, whatever kind it is.

A kind is a module with `load(folder, ...)`, whose result names in `abilities` the commands that it can answer.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from tessera.cards import CARD, read_card
from tessera.errors import CheckpointError, nearest
from tessera.weights import model_type
from tessera.zoo.parts import PREFIX, locate, quiet

KINDS = {
    "vl-gpt": "tessera.assistant",
    "image-classifier": "tessera.classifier",
    "answerer": "tessera.answerer",
    "vision-chat": "tessera.vision_chat",
    "vision-chat-upon-parts": "tessera.zoo.upon",
    "injected-lm": "tessera.augmented",
    "prompted-clip": "tessera.prompted",
    "image-maker": "tessera.image_maker",
    "perceiver": "tessera.perceiver",
    "actor": "tessera.actor",
}
PUBLISHED = {
    "llava": "vision-chat",
    "llava_next": "vision-chat",
}  # what config.json names -> its kind, for folders of transformers without a card


def load(folder: str | Path, *arguments: Any, **options: Any) -> Any:
    """The model in a folder that `tessera train` wrote, of the kind that its card names: an Assistant for VL-GPT, a
    VisionChat for a language model with eyes, a Classifier for a backbone with a head, an Answerer,
    an Augmented for a frozen language model that sees, a PromptedClassifier for a CLIP with learned prompts, an
    ImageMaker for a model of image codes, a Perceiver for one that says something of every pixel, an
    Actor for a policy.

    Args:
        folder: or one of LLaVA or LLaVA-NeXT as transformers writes it; or a mini part in use, such as "mini/llava".
        arguments, options: `dtype` (by default float32) and `device` (by default "cuda" where PyTorch has it).

    Raises:
        CheckpointError: no such folder, a kind or format of another version, or a part that is damaged, pickled or
            does not fit.
        UserError: there is no such mini part.
    """
    folder = Path(folder)
    if folder.as_posix().startswith(PREFIX) and not folder.is_dir():
        folder = Path(locate(folder.as_posix()))
    kind = _kind(folder)
    if kind not in KINDS:
        raise CheckpointError(f"{folder} holds a model of an unknown kind {kind!r}{nearest(kind, KINDS)}")
    with quiet():
        return import_module(KINDS[kind]).load(folder, *arguments, **options)


def _kind(folder: Path) -> str:
    if (
        not (folder / CARD).is_file()
        and (folder / "config.json").is_file()
        and (found := model_type(folder)) in PUBLISHED
    ):
        return PUBLISHED[found]
    return str(read_card(folder).get("model"))
