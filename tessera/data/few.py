"""A part of a source: its first samples, chosen ones, or a few of each class for learning from little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tessera.data.sample import Sample
from tessera.data.source import Source
from tessera.files import short_hash


class _Part:
    """The samples of a source at `places`; `mark` says which those are."""

    def __init__(self, source: Source, places: Sequence[int], name: str, mark: str) -> None:
        self.source, self.places, self.name, self._mark = source, places, name, mark

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int, /) -> Sample:
        return self.source[self.places[index]]

    def fingerprint(self) -> str:
        """That of the source, and which of its samples these are."""
        return f"{self.source.fingerprint()}-{self._mark}"


class First(_Part):
    """The first `number` samples of a source, or all where it has no more."""

    def __init__(self, source: Source, number: int) -> None:
        places = range(len(source))[:number]
        super().__init__(source, places, f"{source.name}, first {len(places)}", str(len(places)))


class Only(_Part):
    """The samples of a source at `places`."""

    def __init__(self, source: Source, places: Sequence[int]) -> None:
        super().__init__(source, places, f"{source.name}, {len(places)} chosen", short_hash(list(places)))


class Few(_Part):
    """Up to `each` samples of every class of a source whose samples' text is their class, drawn by `seed`.

    Samples are looked through until all of `classes` are full; pictures are not decoded for it.
    """

    def __init__(self, source: Source, classes: tuple[str, ...], each: int, seed: int) -> None:
        found: Counter[str] = Counter()
        places: list[int] = []
        for place in np.random.default_rng(seed).permutation(len(source)).tolist():
            label = source[place].text
            if found[label] < each:
                found[label] += 1
                places.append(place)
            if len(places) == each * len(classes):
                break
        super().__init__(source, places, f"{each} of each class of {source.name}", f"few-{each}-{seed}")
