"""Regions of a picture: what a detector found in it, or what a world knows to be there.

Legend: B pictures, K regions of a picture, F width of their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.errors import BadSample

_SLACK = 1e-5  # by which a box may lie outside its picture, for rounding


@dataclass(frozen=True)
class Regions:
    """K >= 1 regions of one picture.

    boxes float32 [K, 4] as x0, y0, x1, y1 in shares of width and height; objects and attributes int64 [K], classes of
    the detector, each with a confidence float32 [K] in [0, 1], 0 where nothing is known; features float32 [K, F], or
    None where an encoder is still to look.
    """

    boxes: np.ndarray
    objects: np.ndarray
    object_confidence: np.ndarray
    attributes: np.ndarray
    attribute_confidence: np.ndarray
    features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)


def unnamed(boxes: np.ndarray) -> Regions:
    """Regions of which only the boxes [K, 4] are known."""
    number = len(boxes)
    nothing, none = np.zeros(number, np.int64), np.zeros(number, np.float32)
    return Regions(boxes, nothing, none, nothing, none)


def named(boxes: np.ndarray, objects: Sequence[int], attributes: Sequence[int]) -> Regions:
    """Regions whose classes are certain."""
    sure = np.ones(len(boxes), np.float32)
    return Regions(boxes, np.array(objects, np.int64), sure, np.array(attributes, np.int64), sure)


def as_shares(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """Boxes [K, 4] in pixels as shares of the picture's sides, float32.

    Raises:
        BadSample: a box lies outside the picture, ends before it begins, or is no number.
    """
    found = np.asarray(boxes, np.float32) / np.array([width, height, width, height], np.float32)
    inside = (found >= -_SLACK) & (found <= 1 + _SLACK)  # False for what is no number
    if not inside.all():
        x0, y0, x1, y1 = np.asarray(boxes)[~inside.all(axis=1)][0]
        raise BadSample(
            f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} lies outside its picture of {width:g} x {height:g} pixels;"
            " boxes are x0, y0, x1, y1 in pixels"
        )
    turned = (found[:, 2] < found[:, 0]) | (found[:, 3] < found[:, 1])
    if turned.any():
        box = ", ".join(f"{value:g}" for value in np.asarray(boxes)[turned][0])
        raise BadSample(f"the box {box} ends before it begins; boxes are x0, y0, x1, y1, not widths and heights")
    return found.clip(0, 1)


@dataclass(frozen=True)
class RegionBatch:
    """Regions of B pictures, padded to the most that one of them has: the fields of `Regions` as tensors [B, K, ...],
    and mask bool [B, K], True where there is a region."""

    boxes: Tensor
    objects: Tensor
    object_confidence: Tensor
    attributes: Tensor
    attribute_confidence: Tensor
    mask: Tensor
    features: Tensor | None = None

    def to(self, device: torch.device | str) -> RegionBatch:
        """The same on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(self, **moved)


def pad(rows: Sequence[np.ndarray | Tensor]) -> Tensor:
    """Arrays [K_i, ...] as one tensor [B, K, ...], zeros after the end of each."""
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True)


def collate_regions(rows: Sequence[Regions]) -> RegionBatch:
    """One batch of B pictures' regions. Features are there where all have some."""
    names = ("boxes", "objects", "object_confidence", "attributes", "attribute_confidence")
    together = {name: pad([getattr(row, name) for row in rows]) for name in names}
    seen = [row.features for row in rows if row.features is not None]
    return RegionBatch(
        **together,
        mask=pad([np.ones(len(row), bool) for row in rows]),
        features=pad(seen) if len(seen) == len(rows) else None,
    )
