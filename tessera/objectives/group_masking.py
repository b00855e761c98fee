"""Group masking (Atito et al. 2022, arXiv 2205.14986): rectangles of a picture are overwritten, by noise or by the same
place of another picture, until a share of its area is; a model then restores what was there.

Groups hide what single patches leave to be copied from a neighbour. Nothing is left out and nothing marked: the model
sees all tokens. Every draw comes from the generator that is handed in, so that masks do not depend on the order in
which pictures are read. Checked against github.com/Sara-Ahmed/GMML, commit 1882712745.

Legend: B pictures of C channels and H x W pixels, normalised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from tessera.errors import UserError, nearest

FILLS = ("noise", "zeros", "copies")
NO_PARTNER = -1.0
_DRAWN = 64  # rectangles drawn at once; a picture needs some 60 at pixel precision

Block = tuple[slice, slice]  # rows, columns


class Corrupted(NamedTuple):
    """One picture as the model sees it, float32 [C, H, W]; what was overwritten, bool [H, W]; and a draw in [0, 1) that
    picks the partner whose pixels are still to be put there, or NO_PARTNER."""

    shown: np.ndarray
    mask: np.ndarray
    partner: float


@dataclass(frozen=True)
class GroupMasking:
    """What is hidden of each picture. The defaults are the released ones.

    A picture is filled with one of `fills` up to a share of its area drawn between `least` and `most`; or, with chance
    1 / (number of fills + 1), overwritten by a partner's pixels up to the share `replace`. Without fills it always has
    a partner; with `replace` 0 never.

    Args:
        block: rectangles are shorter than this share of a side. 0 leaves single steps of `align`: isolated masking.
        align: pixels that corners and sides are multiples of; 1 hides parts of tokens, the token size whole tokens.
        fills: of noise (standard normal), zeros and copies (rectangles from elsewhere in the picture), joined by "-".

    Raises:
        UserError: a share outside [0, 1], an unknown fill, or nothing to hide with.
    """

    least: float = 0.5
    most: float = 0.75
    replace: float = 0.3
    block: float = 0.3
    align: int = 1
    fills: str = "noise"

    def __post_init__(self) -> None:
        for name in ("least", "most", "replace", "block"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a share of the picture in [0, 1], not {getattr(self, name)}")
        if self.align < 1:
            raise UserError(f"align is {self.align} pixels; it is at least 1")
        for fill in self.kinds:
            if fill not in FILLS:
                raise UserError(f"pictures cannot be filled with {fill!r}{nearest(fill, FILLS)}")
        if not self.kinds and not self.replace:
            raise UserError(f"there are no fills and replace is 0: nothing is hidden; name some of {', '.join(FILLS)}")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The fills one by one."""
        return tuple(self.fills.split("-")) if self.fills else ()

    def __call__(self, picture: np.ndarray, rng: np.random.Generator) -> Corrupted:
        """Corrupt a picture, float32 [C, H, W], which stays as it is. Where it gets a partner, `shown` is clean and
        `put_partners` does the rest when the batch is known."""
        height, width = picture.shape[-2:]
        if self.replace and rng.random() < 1 / (len(self.kinds) + 1):
            mask, _ = self.cover(height, width, self.replace, rng)
            return Corrupted(picture, mask, rng.random())
        kind = self.kinds[rng.integers(len(self.kinds))]
        mask, blocks = self.cover(height, width, rng.uniform(min(self.least, self.most), self.most), rng)
        if kind == "copies":
            return Corrupted(self._copied(picture, blocks, rng), mask, NO_PARTNER)
        fill = rng.standard_normal(picture.shape, np.float32) if kind == "noise" else np.float32(0)
        return Corrupted(np.where(mask, fill, picture), mask, NO_PARTNER)

    def cover(self, height: int, width: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, list[Block]]:
        """Rectangles until their union has at least `share` of the area: bool [H, W], and the rectangles in order.

        Raises:
            UserError: `align` does not divide a side.
        """
        mask, blocks = np.zeros((height, width), bool), []
        left = share * height * width
        drawn = self.blocks(height, width, rng)
        while left > 0:
            rows, columns = block = next(drawn)
            part = mask[rows, columns]
            left -= part.size - np.count_nonzero(part)
            part[:] = True
            blocks.append(block)
        return mask, blocks

    def blocks(self, height: int, width: int, rng: np.random.Generator) -> Iterator[Block]:
        """Rectangles without end. As released, the last step of a side starts none, and is reached by longer ones
        alone; where all are one step long, every place may start one."""
        step = self.align
        if height % step or width % step:
            raise UserError(f"align is {step} pixels, which does not divide a picture of {height} x {width}")
        sides = np.array([height, width])
        limits = np.maximum((sides * self.block).astype(int), step + 1)
        starts = np.where(np.rint((limits - 1) / step) > 1, sides - step, sides - step + 1)
        low, high = np.array([0, 0, step, step]), np.concatenate([starts, limits])
        while True:
            drawn = rng.integers(low, high, size=(_DRAWN, 4))
            first = drawn[:, :2] // step * step
            length = np.rint(np.minimum(drawn[:, 2:], sides - first) / step).astype(int) * step
            for (top, left), (bottom, right) in zip(first.tolist(), (first + length).tolist(), strict=True):
                yield slice(top, bottom), slice(left, right)

    def _copied(self, picture: np.ndarray, blocks: list[Block], rng: np.random.Generator) -> np.ndarray:
        """Each rectangle from elsewhere in the picture as the ones before have left it."""
        shown = picture.copy()
        for rows, columns in blocks:
            high, wide = rows.stop - rows.start, columns.stop - columns.start
            free = max(1, shown.shape[1] - high), max(1, shown.shape[2] - wide)
            top, left = (int(start) // self.align * self.align for start in rng.integers(free))
            shown[:, rows, columns] = shown[:, top : top + high, left : left + wide].copy()
        return shown


def put_partners(clean: np.ndarray, shown: np.ndarray, masks: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """`shown` with the pixels of another picture of the batch where one is to be put.

    Args:
        clean, shown: float32 [B, C, H, W].
        masks: bool [B, H, W].
        draws: float [B], those of `Corrupted`.

    Raises:
        UserError: a single picture, which has no partner.
    """
    rows = np.flatnonzero(draws >= 0)
    if not len(rows):
        return shown
    if len(clean) == 1:
        raise UserError("a batch of one picture has no other to take pixels from; use a larger one or set replace to 0")
    partners = (rows + 1 + (draws[rows] * (len(clean) - 1)).astype(int)) % len(clean)
    shown = shown.copy()
    shown[rows] = np.where(masks[rows, None], clean[partners], clean[rows])
    return shown


def corrupted_batch(clean: np.ndarray, corrupted: list[Corrupted]) -> dict[str, torch.Tensor]:
    """What the model reads of B pictures, float32 [B, 3, H, W], and what it is to give."""
    shown, masks, draws = (np.stack(column) for column in zip(*corrupted, strict=True))
    return {
        "pixel_values": torch.from_numpy(put_partners(clean, shown, masks, draws)),
        "targets": torch.from_numpy(clean),
        "mask": torch.from_numpy(masks[:, None]),
    }
