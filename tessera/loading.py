"""`tessera.load`: from a model folder to the model in use, whatever kind it is.

A kind is a module with `load(folder, ...)`, whose result names in `abilities` the commands that it can answer.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from tessera.cards import read_card
from tessera.errors import CheckpointError, nearest

KINDS = {
    "vl-gpt": "tessera.assistant",
    "image-classifier": "tessera.classifier",
    "answerer": "tessera.answerer",
}


def load(folder: str | Path, *arguments: Any, **options: Any) -> Any:
    """The model in a folder that `tessera train` wrote: an Assistant for VL-GPT, a Classifier for a
    backbone with a head.

    Args:
        arguments, options: `dtype` (by default float32) and `device` (by default "cuda" where PyTorch has it).

    Raises:
        CheckpointError: no such folder, a kind or format of another version, or a part that is damaged, pickled or
            does not fit.
    """
    kind = str(read_card(Path(folder)).get("model"))
    if kind not in KINDS:
        raise CheckpointError(f"{folder} holds a model of an unknown kind {kind!r}{nearest(kind, KINDS)}")
    return import_module(KINDS[kind]).load(folder, *arguments, **options)
