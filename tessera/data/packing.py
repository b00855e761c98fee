"""Sequences packed into rows of fixed length, instead of each padded to the longest.

Several sequences share a row. `segment_ids` tells them apart, attention stays inside a segment, and positions
begin at 0 in each, so that a packed sequence gives the same outputs as one alone.

Shapes: B rows, L positions of a row, M pictures of a batch, S side of a picture in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch

from tessera.data.images import Pixels
from tessera.data.mixture import Draw
from tessera.data.quality import Opener
from tessera.data.sample import Image, Sample
from tessera.data.sequence import IGNORED, Sequence, check_length
from tessera.errors import BadSample, UserError


@dataclass
class Batch:
    """Packed rows.

    input_ids int64 [B, L]; labels int64 [B, L], unshifted, -100 where not a text target; visual_target bool
    [B, L]; position_ids int64 [B, L], from 0 in each segment; segment_ids int64 [B, L], 0 is padding,
    segments of a row are 1, 2, ...; images: M pictures in order of appearance, row by row; image_keys: their
    cache keys; pixel_values float32 [M, 3, S, S], more than M where pictures are tiled, or None where the
    packer was not told to decode; sample_ids: the names in each row.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    visual_target: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    images: list[Image]
    sample_ids: list[list[str]]
    pixel_values: torch.Tensor | None = None

    @property
    def image_keys(self) -> list[str | None]:
        """Cache keys of the M pictures."""
        return [image.key for image in self.images]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **moved)


def first_fit_decreasing(lengths: Seq[int], capacity: int) -> list[list[int]]:
    """Rows of indices into `lengths`, none over `capacity`: the longest first, each into the first row with
    room.

    Rows come in the order of their earliest member, members in ascending order.

    Raises:
        UserError: one length alone is over `capacity`.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if length > capacity:
            raise UserError(f"a sequence of {length} positions does not fit a row of {capacity}; raise row_length")
        place = next((row for row, left in enumerate(room) if left >= length), None)
        if place is None:
            rows.append([index])
            room.append(capacity - length)
        else:
            rows[place].append(index)
            room[place] -= length
    return sorted(sorted(row) for row in rows)


def collate_rows(rows: Seq[Seq[Sequence]], row_length: int, pad_id: int) -> Batch:
    """Rows of sequences as one Batch without pixels."""
    shape = (len(rows), row_length)
    ids = np.full(shape, pad_id, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    visual = np.zeros(shape, bool)
    positions = np.zeros(shape, np.int64)
    segments = np.zeros(shape, np.int64)
    for r, row in enumerate(rows):
        at = 0
        for number, sequence in enumerate(row, start=1):
            span = slice(at, at + len(sequence))
            ids[r, span] = sequence.input_ids
            labels[r, span] = sequence.labels
            visual[r, span] = sequence.visual_target
            positions[r, span] = np.arange(len(sequence))
            segments[r, span] = number
            at = span.stop
    return Batch(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        visual_target=torch.from_numpy(visual),
        position_ids=torch.from_numpy(positions),
        segment_ids=torch.from_numpy(segments),
        images=[image for row in rows for sequence in row for image in sequence.images],
        sample_ids=[[sequence.id for sequence in row] for row in rows],
    )


@dataclass(frozen=True)
class Packed:
    """A built sequence and the draw it came from."""

    draw: Draw
    sequence: Sequence


class Builder(Protocol):
    """What makes sequences of samples; `place_id` stands in them where a picture goes."""

    place_id: int

    def build(self, sample: Sample, /) -> Sequence:
        """Raises BadSample."""
        ...


class Packer:
    """The batcher of a Loader that packs: each batch is `rows` rows of `row_length` positions over all
    processes.

    Every process builds the sequences of all rows (words only), so that all agree on the packing; pictures
    are decoded by the process that owns the row. A picture that turns out unreadable then leaves its
    sequence's place empty (padding): the other rows do not change.

    Args:
        builder: makes the sequences; those over `row_length` are bad samples.
        rows: rows of the batch of all processes together.
        window: samples that are packed together; more fills rows better and costs more memory.
        pixels: how pictures are decoded into `pixel_values`; None leaves them to the caller, and only opens them.
        opener: remembers which pictures were opened; share it among the packers of a run.
    """

    def __init__(
        self,
        builder: Builder,
        rows: int,
        row_length: int = 512,
        *,
        pad_id: int = 0,
        window: int = 256,
        pixels: Pixels | None = None,
        opener: Opener | None = None,
    ) -> None:
        self.builder = builder
        self.size = rows
        self.row_length = row_length
        self.pad_id = pad_id
        self.window = window
        self.pixels = pixels
        self.opener = opener or Opener()

    def describe(self) -> str:
        """What a resumed run must have in common."""
        return f"{self.size} packed rows of {self.row_length}, windows of {self.window}"

    def read(self, draw: Draw) -> Packed:
        """Build one sequence. Raises BadSample."""
        sequence = self.builder.build(draw.sample())
        check_length(len(sequence), self.row_length)
        return Packed(draw, sequence if sequence.id else replace(sequence, id=draw.name))

    def plan(self, items: Seq[Packed]) -> tuple[list[list[list[Packed]]], list[Packed]]:
        """Full groups of rows, and what is left for the next window: the rows that hold only the youngest
        items."""
        packed = first_fit_decreasing([len(item.sequence) for item in items], self.row_length)
        rows = [[items[index] for index in row] for row in packed]
        full = len(rows) - len(rows) % self.size
        kept = sorted(index for row in packed[full:] for index in row)
        groups = [rows[start : start + self.size] for start in range(0, full, self.size)]
        return groups, [items[index] for index in kept]

    def batch(self, rows: Seq[Seq[Packed]], skip: Callable[[Draw, BadSample], None]) -> Batch:
        """One process's rows as a Batch; unreadable pictures go to `skip`."""
        arrays: list[np.ndarray] = []
        kept: list[list[Sequence]] = []
        for row in rows:
            kept.append([])
            for item in row:
                try:
                    images = item.sequence.images if self.pixels else self.opener(item.sequence.images)
                    arrays += self._decode(item)
                except BadSample as error:
                    skip(item.draw, error)
                    continue
                kept[-1].append(replace(item.sequence, images=images))
        batch = collate_rows(kept, self.row_length, self.pad_id)
        if self.pixels is None:
            return batch
        side = self.pixels.size
        stacked = np.stack(arrays) if arrays else np.zeros((0, 3, side, side), np.float32)
        return replace(batch, pixel_values=torch.from_numpy(stacked))

    def _decode(self, item: Packed) -> list[np.ndarray]:
        """The pictures of a sequence, or nothing, where they are left to the caller. Raises BadSample."""
        if self.pixels is None:
            return []
        rng = item.draw.rng("augment")
        return [one for image in item.sequence.images for one in self.pixels.several(image.pil(), rng)]
