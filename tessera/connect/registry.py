"""Connectors by name.

connector = create("mlp2x_gelu", 1024, 4096)
"""

from __future__ import annotations

import inspect
from typing import Any

from tessera.connect.connectors import Connector, Linear, PixelShuffle, PixelShuffleMlp, Pooled, TwoLayers
from tessera.errors import UserError, nearest

CONNECTORS: dict[str, type[Connector]] = {
    "linear": Linear,
    "mlp2x_gelu": TwoLayers,
    "pooled": Pooled,
    "pixel-shuffle": PixelShuffle,
    "pixel-shuffle-mlp": PixelShuffleMlp,
}


def names() -> list[str]:
    """All connectors, sorted."""
    return sorted(CONNECTORS)


def create(name: str, vision_width: int, width: int, **options: Any) -> Connector:
    """A new connector from tokens of `vision_width` to those of `width`.

    Raises:
        UserError: no connector has this name or no option that of one of `options`, with the nearest; or a value that
            it refuses.
    """
    if name not in CONNECTORS:
        raise UserError(f"no connector is named {name!r}{nearest(name, CONNECTORS)}")
    kind = CONNECTORS[name]
    known = [one.name for one in inspect.signature(kind).parameters.values() if one.kind is one.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise UserError(f"the connector {name} has no option {option!r}{nearest(option, known)}")
    return kind(vision_width, width, **options)
