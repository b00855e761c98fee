"""The table as a World: what a slightly unsteady expert did, episode by episode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar

from tessera.data.episodes import Episode, Robot, episode_sample
from tessera.data.sample import Sample
from tessera.data.source import Split
from tessera.data.worlds.tabletop.chains import LENGTH, Chain, chain, demonstrations
from tessera.data.worlds.tabletop.env import FPS, ID, Tabletop
from tessera.errors import BadSample, UserError, nearest
from tessera.files import short_hash

_VERSION = 1  # goes up when the same index would give another episode
_SPLITS: dict[Split, int] = {"train": 0, "heldout": 1}
NOISE = 0.1  # standard deviation of what disturbs the expert, as a share of the largest action


class TabletopWorld:
    """Episodes of the expert at the table: chains of five, each from where the one before has ended.

    Episode i of a split is a pure function of (seed, split, i).

    Args:
        seed: of everything.
        train_chains, heldout_chains: chains of each split; each gives five episodes.

    Raises:
        UserError: fewer than one chain.
    """

    name = "tabletop"
    tasks = ("episodes",)

    def __init__(self, *, seed: int = 0, train_chains: int = 2000, heldout_chains: int = 200) -> None:
        self.seed = seed
        self.chains: dict[Split, int] = {"train": train_chains, "heldout": heldout_chains}
        if min(self.chains.values()) < 1:
            raise UserError("the tabletop world needs at least 1 chain a split")

    def chain(self, split: Split, number: int) -> Chain:
        """Chain `number` of a split, which an evaluation can ask a policy for."""
        return chain((self.seed, _SPLITS[split], number))

    def source(self, task: str = "episodes", split: Split = "train") -> TabletopSource:
        """The episodes of a split.

        Raises:
            UserError: no such task or split.
        """
        if task not in self.tasks:
            raise UserError(f"the tabletop world has no task {task!r}{nearest(task, self.tasks)}")
        if split not in _SPLITS:
            raise UserError(f"there is no split {split!r}{nearest(split, _SPLITS)}")
        return TabletopSource(self, split)


class TabletopSource:
    """The episodes of one split, as Samples (`tessera.data.episodes.episode_sample`) or as they are."""

    robot: ClassVar[Robot] = Robot(ID, FPS, Tabletop.action_limits, Tabletop.state_names, Tabletop.action_names)

    def __init__(self, world: TabletopWorld, split: Split) -> None:
        self.world, self.split = world, split
        self.name = f"tabletop/episodes/{split}"
        self._chain = lru_cache(maxsize=4)(self._demonstrate)
        self._asked = lru_cache(maxsize=4)(self._tasks)

    def __len__(self) -> int:
        return LENGTH * self.world.chains[self.split]

    def _tasks(self, number: int) -> tuple[str, ...]:
        return tuple(goal.task for goal in self.world.chain(self.split, number).goals)

    def _demonstrate(self, number: int) -> tuple[Episode, ...]:
        return tuple(demonstrations(self.world.chain(self.split, number), noise=NOISE, seed=number))

    def episode(self, index: int) -> Episode:
        """Episode `index`.

        Raises:
            BadSample: the expert was disturbed so much that it did not arrive.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} episodes; there is no number {index}")
        number, place = divmod(index, LENGTH)
        found = self._chain(number)
        if place >= len(found):
            raise BadSample(f"{self.name} {index}: the expert was led astray")
        return found[place]

    def __getitem__(self, index: int, /) -> Sample:
        episode = self.episode(index)
        return episode_sample(episode, FPS, f"{self.name}/{index}", {"task": episode.task})

    def episodes(self, count: int, tasks: Sequence[str] | None = None) -> Iterator[Episode]:
        """The first `count` episodes, without those in which the expert did not arrive.

        Args:
            tasks: only episodes of these; chains without any of them are not shown to the cameras.
        """
        for index in range(count):
            number, place = divmod(index, LENGTH)
            if tasks is not None and self._asked(number)[place] not in tasks:
                continue
            try:
                yield self.episode(index)
            except BadSample:
                continue

    def fingerprint(self) -> str:
        """A short stable hash of what the source holds."""
        return short_hash([_VERSION, self.world.seed, self.split, len(self), NOISE])
