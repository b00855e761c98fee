"""Tessera: a picture is one more kind of word.

`tessera.load(folder)` gives a trained model: one that captions, answers, draws and chats, or one that classifies.
Importing the package is cheap: the heavy libraries come with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.loading import load as load

__version__ = "0.1.0"
_HOME = {"load": "tessera.loading"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tessera' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
