"""Sample: the one noun every batch is made of, an ordered run of segments.

A caption pair, a dialogue, an interleaved page, an edit and a robot episode are all Samples. Each segment says
whether it is `learned` (a training target) or only read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image as PIL

from tessera.data.images import open_image

Still = PIL.Image | np.ndarray | str | Path | bytes
ImageSource = Still | Callable[[], Still]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Text:
    """A run of words. `role` marks a turn of a dialogue; None is plain running text."""

    text: str
    learned: bool = True
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A picture: a PIL image, a uint8 array [H, W, 3], a path, encoded bytes, or a function that draws it. Decoded or
    drawn only when asked for, so that a picture whose features are known costs nothing.

    `key` names the picture among all others, so that frozen features of it can be cached; None is never cached.
    `role` says whose turn of a dialogue shows it; None is running text.
    """

    source: ImageSource
    learned: bool = True
    key: str | None = None
    role: Role | None = None

    @property
    def stored(self) -> bool:
        """Whether it is read from a file or from its bytes, and so may turn out to be unreadable."""
        return isinstance(self.source, str | Path | bytes) or hasattr(self.source, "read")

    def pil(self) -> PIL.Image:
        """The picture as an RGB PIL image.

        Raises:
            BadSample: the picture cannot be decoded, or is over the size limits of `tessera.data.images`.
        """
        return open_image(self.source() if callable(self.source) else self.source)


@dataclass(frozen=True, slots=True)
class Video:
    """Frames uint8 [T, H, W, 3] at `fps` frames a second."""

    frames: np.ndarray
    fps: float
    learned: bool = True
    key: str | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a robot senses of itself, float [D] or through a whole episode [T, D], in the units of its world."""

    values: np.ndarray
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Action:
    """What a robot does next, float [D], or a chunk or a whole episode [T, D], in the units of its world."""

    values: np.ndarray
    learned: bool = True


@dataclass(frozen=True, slots=True)
class Dense:
    """A target for every pixel or region: masks bool [K, H, W], depth float [H, W] in [0, 1], or boxes float
    [K, 4] as x0, y0, x1, y1 in pixels. `labels` names the K masks or boxes."""

    kind: Literal["masks", "depth", "boxes"]
    values: np.ndarray
    labels: tuple[str, ...] = ()
    learned: bool = True


Segment = Text | Image | Video | State | Action | Dense


@dataclass(frozen=True, slots=True)
class Sample:
    """An ordered run of segments with a name. `meta` carries ground truth and provenance for evaluation only."""

    segments: tuple[Segment, ...]
    id: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures in reading order."""
        return tuple(segment for segment in self.segments if isinstance(segment, Image))

    @property
    def films(self) -> tuple[Video, ...]:
        """The films in reading order."""
        return tuple(segment for segment in self.segments if isinstance(segment, Video))

    @property
    def text(self) -> str:
        """All words in reading order, joined by single spaces."""
        return " ".join(segment.text for segment in self.segments if isinstance(segment, Text))


def pair(image: Image | ImageSource, caption: str, *, id: str = "", meta: Mapping[str, Any] | None = None) -> Sample:
    """A picture and the sentence that describes it, both learned."""
    picture = image if isinstance(image, Image) else Image(image)
    return Sample((picture, Text(caption)), id=id, meta=meta or {})


def question(image: Image, text: str, answer: str, *, id: str = "", meta: Mapping[str, Any] | None = None) -> Sample:
    """A picture, a question about it (both only read) and its answer (learned)."""
    shown = Image(image.source, learned=False, key=image.key, role="user")
    segments = (shown, Text(text, learned=False, role="user"), Text(answer, role="assistant"))
    return Sample(segments, id=id, meta=meta or {})


def interleaved(parts: Iterable[str | Image], *, id: str = "", meta: Mapping[str, Any] | None = None) -> Sample:
    """A page of running text and pictures, everything learned."""
    return Sample(tuple(Text(part) if isinstance(part, str) else part for part in parts), id=id, meta=meta or {})
