"""Batches from a source: the same ones for any number of processes and workers, resumable in the middle of an
epoch.

The order is a pure function of (seed, epoch, index), see `tessera.data.mixture`. A loader walks the endless
stream in windows; a batcher makes global batches of each window; a process takes its slice of every batch.
Threads decode ahead, the order of batches does not depend on them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from tessera.data.mixture import Draw, Mixture, stream_of
from tessera.data.quality import SkipLog
from tessera.data.sample import Sample
from tessera.data.source import Source
from tessera.errors import BadSample, DataError, UserError

Item = TypeVar("Item")
B = TypeVar("B", covariant=True)
Skip = Callable[[Draw, BadSample], None]


class Batcher(Protocol[B]):
    """How draws become batches.

    `window` draws are read together on every process (`read`), planned into groups of `size` rows with a rest
    that joins the next window (`plan`); `batch` turns the rows of one process into its batch.
    """

    window: int
    size: int

    def describe(self) -> str: ...

    def read(self, draw: Draw) -> Any: ...

    def plan(self, items: list[Any]) -> tuple[list[list[Any]], list[Any]]: ...

    def batch(self, rows: list[Any], skip: Skip) -> B: ...


class Samples(Generic[Item, B]):
    """The batcher of a Loader that does not pack: `size` samples a batch over all processes.

    Args:
        prepare: makes one item of a sample (decodes, tokenises); may raise BadSample, and then another
            sample, drawn for that place alone, stands in, so that batches keep their size.
        collate: makes the batch of a list of items.
        size: samples of the batch of all processes together.
    """

    def __init__(
        self,
        prepare: Callable[[Sample, np.random.Generator], Item],
        collate: Callable[[list[Item]], B],
        size: int,
    ) -> None:
        self.prepare = prepare
        self.collate = collate
        self.size = self.window = size

    def describe(self) -> str:
        """What a resumed run must have in common."""
        return f"{self.size} samples"

    def read(self, draw: Draw) -> Draw:
        """Nothing yet: each process reads its own samples only."""
        return draw

    def plan(self, items: list[Draw]) -> tuple[list[list[Draw]], list[Draw]]:
        """One batch, nothing left."""
        return [items], []

    def batch(self, rows: list[Draw], skip: Skip) -> B:
        """Prepare and collate."""
        return self.collate([self._one(draw, skip) for draw in rows])

    def _one(self, draw: Draw, skip: Skip) -> Item:
        chooser = draw.rng("stand-in")
        for _ in range(100):
            try:
                return self.prepare(draw.sample(), draw.rng("augment"))
            except BadSample as error:
                skip(draw, error)
            number, epoch, _index = draw.ticket
            draw = Draw(draw.source, draw.seed, (number, epoch, int(chooser.integers(len(draw.source)))))
        raise DataError(f"{draw.source.name}: 100 samples in a row could not be used")


class Loader(Generic[B]):
    """An endless iterator of batches that knows its place.

    Args:
        source: a source or a Mixture. With workers it is read from several threads at once.
        batcher: `Samples` or `tessera.data.packing.Packer`; its size is that of the batch of all processes.
        rank, world_size: this process, and how many there are.
        workers: threads that read and decode ahead; 0 does all when a batch is asked for.
        share: of samples that may be bad before the run stops, see `tessera.data.quality.allowed`.

    Raises:
        UserError: the batch does not divide among the processes.
        DataError: the source is empty; while iterating: too many bad samples.
    """

    def __init__(
        self,
        source: Source | Mixture,
        batcher: Batcher[B],
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        share: float = 0.001,
    ) -> None:
        if batcher.size % world_size:
            raise UserError(f"a batch of {batcher.size} does not divide among {world_size} processes")
        self.source = source
        self.batcher = batcher
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.workers = workers
        self.stream = stream_of(source, seed)
        self.skips = SkipLog(self.stream.total, share)
        self.fingerprint = self.stream.fingerprint()
        self._drawn = 0
        self._place: dict[str, Any] = {"position": 0, "carried": [], "batches": 0}

    @property
    def epoch(self) -> float:
        """Samples drawn so far, in multiples of the whole set."""
        return self._place["position"] / self.stream.total

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch handed out, as JSON. Prefetched batches do not count."""
        return {
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "batches_of": self.batcher.describe(),
            "place": self._place,
            "skips": self.skips.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, allow_other_data: bool = False) -> None:
        """Go on where `state` was taken. The number of processes may differ, seed and batches may not.

        Raises:
            DataError: other data (unless allowed: then the position is kept), seed or batches.
        """
        now = self.state_dict()
        same_data = state["fingerprint"] == now["fingerprint"]
        if not same_data and not allow_other_data:
            raise DataError(
                f"the data are not those of the run to resume: fingerprint {now['fingerprint']}, the run had"
                f" {state['fingerprint']}; restore the data, start a new run, or pass allow_other_data"
            )
        for key, words in (("seed", "seed"), ("batches_of", "batches")):
            if state[key] != now[key]:
                raise DataError(f"resume needs the same {words}: this run has {now[key]}, the saved one {state[key]}")
        self._place = {**state["place"], **({} if same_data else {"carried": [], "batches": 0})}
        self.skips.load_state_dict(state["skips"])

    def __iter__(self) -> Iterator[B]:
        """Batches from the present place on, without end. One iteration at a time."""
        if self.workers == 0:
            for rows, place in self._plans(map):
                batch = self.batcher.batch(rows, self._skip)
                self._place = place
                yield batch
            return
        with ThreadPoolExecutor(1) as planner, ThreadPoolExecutor(self.workers) as pool:
            plans = self._plans(pool.map)

            def ahead() -> tuple[Future[B], dict[str, Any]]:
                rows, place = next(plans)
                return pool.submit(self.batcher.batch, rows, self._skip), place

            queue = deque(planner.submit(ahead) for _ in range(2 * self.workers))
            try:
                while True:
                    future, place = queue.popleft().result()
                    batch = future.result()
                    queue.append(planner.submit(ahead))
                    self._place = place
                    yield batch
            finally:
                for waiting in queue:
                    waiting.cancel()

    def _plans(self, mapping: Callable[..., Iterator[Any]]) -> Iterator[tuple[list[Any], dict[str, Any]]]:
        """This process's rows of each batch from the present place on, with the place after it."""
        position, done = self._place["position"], self._place["batches"]
        tickets = [tuple(ticket) for ticket in self._place["carried"]]
        carried = [item for item in mapping(self._read, map(self.stream.redraw, tickets)) if item is not None]
        while True:
            start = position
            position += self.batcher.window
            self._drawn = position
            draws = [self.stream.draw(p) for p in range(start, position)]
            fresh = [item for item in mapping(self._read, draws) if item is not None]
            groups, left = self.batcher.plan(carried + fresh)
            for number, rows in enumerate(groups[done:], start=done + 1):
                place = {
                    "position": start,
                    "carried": [list(ticket) for ticket in tickets],
                    "batches": number,
                }
                yield rows[self.rank :: self.world_size], place
            done, carried = 0, left
            tickets = [item.draw.ticket for item in left]

    def _read(self, draw: Draw) -> Any:
        try:
            return self.batcher.read(draw)
        except BadSample as error:
            self._skip(draw, error)
            return None

    def _skip(self, draw: Draw, error: BadSample) -> None:
        self.skips.skip(draw.name, str(error), tried=self._drawn)
