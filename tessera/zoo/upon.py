"""A language model with eyes that stands on parts of the zoo: its folder names them and holds what was learned beside
them, so that they ship once. In use it is like any other, and what is saved of it then is whole.

    config.json          the parts, with the hash of their weights, and fields of LVLMConfig
    model.safetensors    connector.*, and of what is added to the language model the two factors of each matrix
    chat_template.jinja  how dialogues are written
    tessera.json         its card
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tessera.cards import read_card, write_card
from tessera.data.images import Pixels
from tessera.data.sequence import PLACE
from tessera.errors import CheckpointError, reason
from tessera.files import sha256, write_json, write_text
from tessera.models.adapters import add_factors, factors
from tessera.models.lvlm import LVLMForConditionalGeneration
from tessera.vision_chat import TEMPLATE, VisionChat
from tessera.weights import NAME, load_state, shapes_in, weight_files
from tessera.zoo.foundation import read_tokenizer
from tessera.zoo.parts import locate, quiet

KIND = "vision-chat-upon-parts"
CONNECTOR, ADDED = "connector.", "language_model."


def assemble(vision: str, language: str, fields: Mapping[str, Any]) -> LVLMForConditionalGeneration:
    """A new connector between two parts by name, with PLACE of the second's tokenizer for pictures; PyTorch's generator
    makes its weights.

    Args:
        fields: further ones of `LVLMConfig`.
    """
    place = read_tokenizer(language).convert_tokens_to_ids(PLACE)
    with quiet():
        return LVLMForConditionalGeneration.from_parts(
            locate(vision), locate(language), image_token_id=place, **fields
        )  # fmt: skip


def write(
    model: LVLMForConditionalGeneration, folder: Path, *, vision: str, language: str, fields: Mapping[str, Any],
    template: str, needs_picture: bool = False,
) -> None:  # fmt: skip
    """Write what `model` has learned beside the parts that `assemble` made it of, in bf16.

    Args:
        model: its language model with its adapters still beside its weights, where it has learned.
        template: how dialogues are written.
    """
    language_model: Any = model.language_model
    learned = {CONNECTOR + name: value for name, value in model.connector.state_dict().items()}
    learned |= {ADDED + name: value for name, value in factors(language_model).items()}
    kept = {name: value.to("cpu", torch.bfloat16).contiguous() for name, value in learned.items()}
    save_file(kept, folder / NAME, metadata={"format": "pt"})
    parts = {"vision": vision, "language": language}
    hashes = {role: _hash(name) for role, name in parts.items()}
    write_json(folder / "config.json", {"parts": parts, "hashes": hashes, "fields": dict(fields)})
    write_text(folder / TEMPLATE, template)
    write_card(folder, KIND, needs_picture=needs_picture)


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | None = None) -> VisionChat:
    """What `write` wrote, whole.

    Args:
        device: by default "cuda" where PyTorch has it, else "cpu".

    Raises:
        CheckpointError: a file that is absent, damaged or does not fit, or a part that is another than it was.
        UserError: a part that there is not.
    """
    folder = Path(folder)
    card = read_card(folder, KIND)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parts, hashes, fields = config["parts"], config["hashes"], config["fields"]
        names = parts["vision"], parts["language"]
        template = (folder / TEMPLATE).read_text(encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} cannot be read as a model upon parts: {reason(error)}") from error
    for role, name in parts.items():
        if _hash(name) != hashes.get(role):
            raise CheckpointError(
                f"{folder} was trained upon another {name} than is here; build it again with"
                f" `tessera zoo build {folder.name}`"
            )
    model = assemble(*names, fields)
    shapes_in(folder / NAME)
    stored = load_file(folder / NAME)
    mine, added = ({k.removeprefix(p): v for k, v in stored.items() if k.startswith(p)} for p in (CONNECTOR, ADDED))
    load_state(model.connector, mine, f"{folder / NAME}, of its connector,")
    add_factors(model.language_model, added)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    nn.Module.to(model, place, dtype)
    tokenizer = read_tokenizer(names[1])
    tokenizer.chat_template = template
    return VisionChat(model.eval(), tokenizer, pixels(model), bool(card.get("needs_picture")))


def pixels(model: LVLMForConditionalGeneration) -> Pixels:
    """How pictures enter its eyes."""
    return Pixels(int(model.config.vision_config.image_size))


def _hash(name: str) -> str:
    """Of a part's weights."""
    return "-".join(sha256(file) for file in weight_files(Path(locate(name))))
