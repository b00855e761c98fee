"""Which sample comes when: a pure function of (seed, position), for one source or a weighted mixture of
several.

A stream is endless. Position p of a stream over one source of n samples is sample number p mod n of epoch p
div n, in an order of that epoch's own. Workers and processes only slice it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tessera.data.sample import Sample
from tessera.data.source import Source
from tessera.errors import DataError, UserError

Ticket = tuple[int, int, int]  # source, epoch, index in the source
_BLOCK = 1000  # positions in which a mixture holds its shares exactly


@dataclass(frozen=True)
class Draw:
    """One sample of a stream, not yet read."""

    source: Source
    seed: int
    ticket: Ticket

    @property
    def name(self) -> str:
        """The name of the source, without the task that is laid over it, and the index in it."""
        source = self.source
        while hasattr(source, "source"):
            source = source.source
        return f"{source.name}[{self.ticket[2]}]"

    def rng(self, purpose: str) -> np.random.Generator:
        """A generator that depends on seed, source, epoch, index and purpose alone."""
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode()), *self.ticket])

    def sample(self) -> Sample:
        """Read it. Sources with a `draw(index, rng)` get this draw's generator for their random choices.

        Raises:
            BadSample: it cannot be used.
        """
        index = self.ticket[2]
        chooser = getattr(self.source, "draw", None)
        return chooser(index, self.rng("task")) if chooser is not None else self.source[index]


class Stream(Protocol):
    """An endless run of draws. `total` is the number of different samples."""

    total: int

    def draw(self, position: int) -> Draw: ...

    def redraw(self, ticket: Ticket) -> Draw: ...

    def fingerprint(self) -> str: ...


def _require_samples(source: Source) -> None:
    if len(source) == 0:
        raise DataError(f"{source.name} holds no samples")


class SourceStream:
    """The endless stream of one source, every sample once an epoch, each epoch in another order.

    Raises:
        DataError: the source is empty.
    """

    def __init__(self, source: Source, seed: int, number: int = 0) -> None:
        _require_samples(source)
        self.source = source
        self.seed = seed
        self.number = number
        self.total = len(source)
        self._order: tuple[int, np.ndarray] | None = None

    def draw(self, position: int) -> Draw:
        """The draw at `position`."""
        epoch, rank = divmod(position, self.total)
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, self.number, epoch])
            self._order = (epoch, rng.permutation(self.total))
        return Draw(self.source, self.seed, (self.number, epoch, int(self._order[1][rank])))

    def redraw(self, ticket: Ticket) -> Draw:
        """The draw that had this ticket."""
        return Draw(self.source, self.seed, ticket)

    def fingerprint(self) -> str:
        """That of the source."""
        return self.source.fingerprint()


class Mixture:
    """Several sources with a weight each. Give it to a Loader where a source goes.

    Every 1,000 samples hold each source in its exact share, to the nearest whole sample and at least one;
    each source runs through its own epochs at its own pace.

    Raises:
        UserError: no source, or a weight that is not above 0.
    """

    def __init__(self, parts: Sequence[tuple[Source, float]]) -> None:
        if not parts or any(not weight > 0 for _, weight in parts):
            raise UserError("a mixture needs at least one source, each with a weight above 0")
        self.sources = [source for source, _ in parts]
        self.name = " + ".join(source.name for source in self.sources)
        whole = sum(weight for _, weight in parts)
        self.shares = [weight / whole for _, weight in parts]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)

    def fingerprint(self) -> str:
        """A hash of all sources' fingerprints and shares."""
        words = [f"{source.fingerprint()} {share:.6f}" for source, share in zip(self.sources, self.shares, strict=True)]
        return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]

    def stream(self, seed: int) -> MixtureStream:
        """The endless stream of this mixture."""
        return MixtureStream(self, seed)


class MixtureStream:
    """The stream of a Mixture. In each block of 1,000 positions the counts are fixed and the places drawn."""

    def __init__(self, mixture: Mixture, seed: int) -> None:
        self.mixture = mixture
        self.seed = seed
        self.streams = [SourceStream(source, seed, number) for number, source in enumerate(mixture.sources)]
        self.total = sum(stream.total for stream in self.streams)
        self._counts = _whole_counts(mixture.shares)
        self._block: tuple[int, np.ndarray, np.ndarray] | None = None

    def draw(self, position: int) -> Draw:
        """The draw at `position`."""
        block, place = divmod(position, _BLOCK)
        kinds, ranks = self._layout(block)
        number = int(kinds[place])
        return self.streams[number].draw(block * self._counts[number] + int(ranks[place]))

    def redraw(self, ticket: Ticket) -> Draw:
        """The draw that had this ticket."""
        return self.streams[ticket[0]].redraw(ticket)

    def fingerprint(self) -> str:
        """That of the mixture."""
        return self.mixture.fingerprint()

    def _layout(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of a block: which source, and the how-manieth of that source in the block."""
        if self._block is None or self._block[0] != block:
            kinds = np.repeat(np.arange(len(self._counts)), self._counts)
            np.random.default_rng([self.seed, zlib.crc32(b"mixture"), block]).shuffle(kinds)
            ranks = np.zeros(_BLOCK, np.int64)
            for number, count in enumerate(self._counts):
                ranks[kinds == number] = np.arange(count)
            self._block = (block, kinds, ranks)
        return self._block[1], self._block[2]


def _whole_counts(shares: Sequence[float]) -> list[int]:
    """Shares as whole counts that sum to 1,000, by largest remainder, each at least 1."""
    counts = [max(1, int(share * _BLOCK)) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda k: counts[k] - shares[k] * _BLOCK)
    for k in range(_BLOCK - sum(counts)):
        counts[by_remainder[k % len(counts)]] += 1
    while sum(counts) > _BLOCK:  # many tiny shares were raised to 1: the largest pays
        counts[counts.index(max(counts))] -= 1
    return counts


def stream_of(source: Source | Mixture, seed: int) -> Stream:
    """The endless stream of a source or a mixture."""
    return source.stream(seed) if isinstance(source, Mixture) else SourceStream(source, seed)
