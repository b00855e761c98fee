"""The card of a model folder, `tessera.json`: which kind of model lies there, in which format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tessera.errors import CheckpointError
from tessera.files import write_json

CARD = "tessera.json"
FORMAT = 1  # of the model folder


def write_card(folder: Path, model: str, **more: Any) -> None:
    """Say that a `model` lies in `folder`, and what `more` of it that no file of its layout has a place for."""
    write_json(folder / CARD, {"format": FORMAT, "model": model, **more})


def read_card(folder: Path, model: str | None = None) -> dict[str, Any]:
    """The card of a folder.

    Args:
        model: the kind that it must be of; None for any.

    Raises:
        CheckpointError: it is no model folder of Tessera, of another version, or of another kind.
    """
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        card = None
    if not isinstance(card, dict):
        raise CheckpointError(
            f"{folder} is no model folder of Tessera (it has no readable {CARD}); give the folder that"
            " `tessera train` named at its end"
        )
    if card.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {card.get('format')}, this version reads {FORMAT}; train it again")
    if model is not None and card.get("model") != model:
        raise CheckpointError(f"{folder} holds a model of kind {card.get('model')!r}, not {model!r}")
    return card
