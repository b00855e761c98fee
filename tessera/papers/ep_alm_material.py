"""What a training of eP-ALM starts from: two frozen parts and the tokenizer of one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from tessera.augmented import check_roles
from tessera.errors import CheckpointError, UserError, reason
from tessera.models.injected import InjectedLMForConditionalGeneration
from tessera.models.lvlm.language import read_language_model
from tessera.papers.ep_alm_study import LANGUAGE, VISION
from tessera.papers.registry import TrainOptions
from tessera.vision.registry import create
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import locate, quiet


def parts_of(options: TrainOptions) -> dict[str, str]:
    """Names or folders of the frozen parts. Raises UserError where a role is unknown or missing."""
    check_roles(options.parts)
    if options.size == "published" and len(options.parts) < 2:
        raise UserError(
            "the published size needs both frozen parts; give them as --parts vision=FOLDER language=FOLDER, for"
            " instance a ViT-B/16 and OPT-2.7B"
        )
    return {"vision": VISION, "language": LANGUAGE, **options.parts}


def tokenizer_of(language: str, mark: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a language model, with `mark` added where it is not there. Raises CheckpointError."""
    tokenizer = read_tokenizer(locate(language))
    if mark and mark not in tokenizer.get_vocab():
        tokenizer.add_tokens([mark], special_tokens=True)
    return tokenizer


def builder(parts: Mapping[str, str], fields: Mapping[str, Any]) -> Callable[[], InjectedLMForConditionalGeneration]:
    """What makes a new connector and prompt between the frozen parts, which are read once."""
    folder = Path(locate(parts["vision"]))
    with quiet():
        eyes, words = create(str(folder)), read_language_model(locate(parts["language"]))
    fields = {**fields, **_norms(folder / "preprocessor_config.json")}
    return lambda: InjectedLMForConditionalGeneration.from_parts(eyes, words, **fields)


def _norms(file: Path) -> dict[str, Any]:
    """How an encoder that says so expects the values of pictures. Raises CheckpointError where it cannot be read."""
    if not file.is_file():
        return {}
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        return {name: given[name] for name in ("image_mean", "image_std") if name in given}
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}") from error


def check(model: InjectedLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise UserError where the encoder gives no class tokens or the language model has not all the words."""
    size = model.config.vision_config.image_size
    model.encode_images(torch.zeros(1, 3, size, size))
    table: Any = model.get_input_embeddings()
    if len(tokenizer) > table.num_embeddings:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, its mark included, and the language model rows for"
            f" {table.num_embeddings}; take another tokenizer, or leave out the mark with --set mark="
        )
