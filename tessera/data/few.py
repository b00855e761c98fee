"""A few samples of each class, for learning from little."""

from __future__ import annotations

from collections import Counter

import numpy as np

from tessera.data.sample import Sample
from tessera.data.source import Source


class Few:
    """Up to `each` samples of every class of a source whose samples' text is their class, drawn by `seed`.

    Samples are looked through until all of `classes` are full; pictures are not decoded for it.
    """

    def __init__(self, source: Source, classes: tuple[str, ...], each: int, seed: int) -> None:
        self.name, self.source = f"{each} of each class of {source.name}", source
        self._mark = f"few-{each}-{seed}"
        found: Counter[str] = Counter()
        self.places: list[int] = []
        for place in np.random.default_rng(seed).permutation(len(source)).tolist():
            label = source[place].text
            if found[label] < each:
                found[label] += 1
                self.places.append(place)
            if len(self.places) == each * len(classes):
                break

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int, /) -> Sample:
        return self.source[self.places[index]]

    def fingerprint(self) -> str:
        """Changes with the source, the number and the seed."""
        return f"{self.source.fingerprint()}-{self._mark}"
