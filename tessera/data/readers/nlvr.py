"""NLVR (Suhr et al. 2017): sentences that people wrote about three drawn boxes, true of them or false."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

from PIL import Image as PIL

from tessera.data.readers.shards import STATEMENTS, open_shards
from tessera.data.sample import Image, Sample, pair
from tessera.errors import DataError
from tessera.files import short_hash

BOXES = ((0.0, 0.25), (0.375, 0.625), (0.75, 1.0))  # of a picture's width; grey bars stand between
GREY = 211  # of an empty box
SIDE = 100  # pixels of an empty box

Form = Literal["whole", "caption", "boxes", "blank"]


class Statements:
    """The statements of one tar file of NLVR as a Source.

    Args:
        path: tar shard with KEY.png and KEY.json (sentence, label).
        form: what a statement becomes. "whole": its picture, the question, its answer; "boxes": the same, with each of
            the three boxes as a picture; "blank": the same, with empty boxes; "caption": its picture and the sentence,
            of true ones only.
        once: only the first of an example's arrangements.
        examples: only so many examples; None for all.

    Raises:
        DataError: the file is not there, or holds no statements.
    """

    def __init__(self, path: Path, *, form: Form = "whole", once: bool = False, examples: int | None = None) -> None:
        if not path.is_file():
            raise DataError(f"{path} is not there; --data takes the folder that holds nlvr-dev.tar and nlvr-test.tar")
        world = open_shards(path, layout=STATEMENTS)
        sources = [world.source("questions", split) for split in ("train", "heldout")]
        records = sorted(
            ((one, place) for one in sources for place in range(len(one))),
            key=lambda found: found[0].records[found[1]].id,
        )
        groups = [list(run) for _, run in groupby(records, key=lambda found: found[0].records[found[1]].group)]
        taken = [item for group in groups[:examples] for item in group[: 1 if once else None]]
        kept = [(source, place) for source, place in taken if form != "caption" or source[place].meta["label"]]
        self.name, self.form, self.items = f"{path.name} {form}", form, kept
        mark = short_hash([world.fingerprint(), form != "blank", once, len(taken)])
        self._fingerprint = mark if form in ("boxes", "blank") else f"{mark}-{len(kept)}"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Sample:
        source, place = self.items[index]
        sample = source[place]
        picture = sample.images[0]
        if self.form == "whole":
            return sample
        if self.form == "caption":
            return pair(picture, str(sample.meta["sentence"]), id=sample.id)
        return replace(sample, segments=(*_boxes(picture, self.form == "blank"), *sample.segments[1:]))

    def fingerprint(self) -> str:
        """That of the file, and what is taken of it."""
        return self._fingerprint


def _boxes(picture: Image, empty: bool) -> list[Image]:
    """The boxes of a picture, not yet cut out, or empty ones."""
    if empty:
        return [Image(_blank, learned=False, key="nlvr blank", role="user")] * len(BOXES)
    return [
        Image(partial(_cut, picture, number), learned=False, key=f"{picture.key} box {number}", role="user")
        for number in range(len(BOXES))
    ]


def _cut(picture: Image, number: int) -> PIL.Image:
    whole = picture.pil()
    left, right = (round(edge * whole.width) for edge in BOXES[number])
    return whole.crop((left, 0, right, whole.height))


def _blank() -> PIL.Image:
    return PIL.new("RGB", (SIDE, SIDE), (GREY, GREY, GREY))
