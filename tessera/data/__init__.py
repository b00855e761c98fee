"""Samples and where they come from. The parts that need torch are imported by their own names (packing,
loader)."""

from tessera.data.sample import (
    Action,
    Dense,
    Image,
    Sample,
    State,
    Text,
    Video,
    interleaved,
    pair,
    question,
)
from tessera.data.source import Source, World

__all__ = [
    "Action",
    "Dense",
    "Image",
    "Sample",
    "Source",
    "State",
    "Text",
    "Video",
    "World",
    "interleaved",
    "pair",
    "question",
]
