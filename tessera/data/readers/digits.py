"""Handwritten digits (Alpaydin and Kaynak 1998): the 1,797 of 8 x 8 grey values that scikit-learn carries."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PIL

from tessera.data.quality import Tally
from tessera.data.readers.classes import ClassWorld, Labelled
from tessera.data.readers.files import Record
from tessera.data.sample import Image, Sample, pair
from tessera.errors import UserError

HELD = 497  # the last ones: people wrote one after the other, so that most hands among them are new
WHITEST = 16  # of the grey values, white on black


def open_digits() -> ClassWorld:
    """The digits by their name, "0" to "9", of which the last 497 are held out.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the handwritten digits come with scikit-learn, which is not installed: pip install 'tessera-vl[real]'"
        ) from None
    found: Any = load_digits()
    pictures = np.rint(found.images * (255 / WHITEST)).astype(np.uint8)
    trained = len(pictures) - HELD
    records = [
        Record(f"{place:04}", "train" if place < trained else "held", Labelled(Path(f"{place:04}"), 64, str(label)))
        for place, label in enumerate(found.target.tolist())
    ]
    return ClassWorld("handwritten digits", records, Tally(), {"held"}, partial(_make, pictures))


def _make(pictures: np.ndarray, record: Record[Labelled]) -> Sample:
    shown = partial(PIL.fromarray, pictures[int(record.id)])
    return pair(Image(shown, key=f"digits/{record.id}"), record.item.label, id=record.id)
