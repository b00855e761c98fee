"""A policy in an environment: how often it does what it is told, and how many of five tasks in a row.

A policy is a function of what was observed lately and of the goal in words, and gives the next action. What was
observed is a dict of the environment's own observations, stacked: array [t, ...] each, t from 1 up to `window`, the
latest last.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tessera.data.episodes import checked_actions
from tessera.errors import UserError
from tessera.evaluate.intervals import Estimate, bootstrap_mean, exact_binomial

Seen = Mapping[str, np.ndarray]
Policy = Callable[[Seen, str], np.ndarray]
# The same for several tries at once: an action for each.
Policies = Callable[[Sequence[Seen], Sequence[str]], Sequence[np.ndarray] | np.ndarray]


@dataclass(frozen=True)
class Rollout:
    """One try: whether the goal was reached, after how many steps, with how much reward; and `frames`, what the
    environment rendered, uint8 [H, W, 3] each, where it was asked for."""

    goal: str
    task: str
    success: bool
    steps: int
    reward: float
    frames: list[np.ndarray] = field(default_factory=list, compare=False, repr=False)


@dataclass(frozen=True)
class SuccessReport:
    """The share of successes with its exact 95 % interval, the same for each task where the environment names them, and
    the mean number of steps."""

    success: Estimate
    tasks: dict[str, Estimate]
    steps: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        tasks = {task: share.to_json() for task, share in self.tasks.items()}
        return {"success": self.success.to_json(), "tasks": tasks, "steps": self.steps}


@dataclass(frozen=True)
class ChainReport:
    """How many goals of each chain were reached in a row: `average` with its bootstrap interval, and `reached`, the
    shares of chains in which at least 1, 2, ... were, with exact intervals."""

    lengths: tuple[int, ...]
    average: Estimate
    reached: tuple[Estimate, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        reached = [share.to_json() for share in self.reached]
        return {"lengths": list(self.lengths), "average": self.average.to_json(), "reached": reached}


class AskedFor(Protocol):
    """A chain: what a table is like at first, and what is asked for then (`tessera.data.worlds.tabletop.chain`)."""

    @property
    def table(self) -> Any: ...

    @property
    def goals(self) -> tuple[Any, ...]: ...


def roll(
    env: Any,
    policy: Policy,
    begun: tuple[Any, dict[str, Any]],
    *,
    window: int,
    steps: int | None,
    goal: str,
    film: bool,
) -> Rollout:
    """Go on from `begun`, which `env.reset` gave, until the environment ends it or `steps` are over.

    Args:
        goal: what the policy is told where the environment's `info` has no "goal".
        film: keep what the environment renders, also before the first step and after the last.

    Raises:
        UserError: an action outside the environment's limits.
    """
    one = _Try(env, begun, window, steps, goal, film)
    while not one.ended:
        one.take(policy(one.shown(), one.told))
    return one.result()


def roll_together(
    envs: Sequence[Any],
    policy: Policies,
    begun: Sequence[tuple[Any, dict[str, Any]]],
    *,
    window: int,
    steps: int | None,
    goal: str = "",
) -> list[Rollout]:
    """As `roll`, of several environments side by side: at each step `policy` is asked once about all tries that still
    go on, which is faster than one after the other."""
    tries = [_Try(env, first, window, steps, goal, film=False) for env, first in zip(envs, begun, strict=True)]
    while going := [one for one in tries if not one.ended]:
        actions = policy([one.shown() for one in going], [one.told for one in going])
        for one, action in zip(going, actions, strict=True):
            one.take(action)
    return [one.result() for one in tries]


class _Try:
    """One try under way."""

    def __init__(
        self, env: Any, begun: tuple[Any, dict[str, Any]], window: int, steps: int | None, goal: str, film: bool
    ) -> None:
        self.env, self.steps, self.film = env, steps, film
        seen, self.info = begun
        self.told = str(self.info.get("goal", goal))
        self.lately: deque[Seen] = deque(maxlen=window)
        self.frames: list[np.ndarray] = [env.render()] if film else []
        self.reward, self.count, self.ended, self.terminated = 0.0, 0, False, False
        self._keep(seen)

    def _keep(self, seen: Any) -> None:
        self.lately.append(seen if isinstance(seen, Mapping) else {"observation": seen})

    def shown(self) -> Seen:
        """What was observed lately, stacked."""
        return {name: np.stack([one[name] for one in self.lately]) for name in self.lately[-1]}

    def take(self, action: np.ndarray) -> None:
        """One step. Raises UserError for an action outside the limits."""
        seen, gained, self.terminated, truncated, self.info = self.env.step(_within(self.env, action))
        self.reward, self.count = self.reward + float(gained), self.count + 1
        self.ended = self.terminated or truncated or self.count == self.steps
        self._keep(seen)
        if self.film:
            self.frames.append(self.env.render())

    def result(self) -> Rollout:
        """How it went."""
        success = bool(self.info.get("is_success", self.info.get("success", self.terminated)))
        task = str(self.info.get("task", ""))
        return Rollout(self.told, task, success, self.count, self.reward, self.frames)


def _within(env: Any, action: np.ndarray) -> np.ndarray:
    space = env.action_space
    return checked_actions(action, space.low, space.high) if hasattr(space, "low") else action


def rollout(
    env: Any,
    policy: Policy,
    *,
    seed: int,
    window: int = 10,
    steps: int | None = None,
    goal: str = "",
    film: bool = False,
    task: str | None = None,
) -> Rollout:
    """One episode of a Gymnasium environment from its seed; see `roll`.

    Args:
        task: the one that is tried, of an environment that has several: its `reset` takes "task" as an option, and its
            `info` says it again.

    Raises:
        UserError: the environment does not know the task, or passes over it; or an action outside its limits.
    """
    begun = env.reset(seed=seed, options=None if task is None else {"task": task})
    if task is not None and begun[1].get("task") != task:
        name = env.spec.id if getattr(env, "spec", None) else type(env).__name__
        raise UserError(f"the environment {name} takes no task, and was asked for {task!r}; leave --task out")
    return roll(env, policy, begun, window=window, steps=steps, goal=goal, film=film)


def success_rate(
    env: Any,
    policy: Policy,
    episodes: int = 100,
    *,
    seed: int = 0,
    window: int = 10,
    steps: int | None = None,
    goal: str = "",
) -> SuccessReport:
    """Episodes of seeds `seed`, `seed` + 1, ...

    Raises:
        UserError: no episodes, or an action outside the limits.
    """
    if episodes < 1:
        raise UserError(f"a success rate needs at least one episode, not {episodes}")
    return reported(
        [rollout(env, policy, seed=seed + number, window=window, steps=steps, goal=goal) for number in range(episodes)]
    )


def reported(tried: Sequence[Rollout]) -> SuccessReport:
    """How often tries, at least one, succeeded."""
    asked, reached = Counter(one.task for one in tried), Counter(one.task for one in tried if one.success)
    tasks = {task: exact_binomial(reached[task], count) for task, count in sorted(asked.items()) if task}
    success = exact_binomial(sum(reached.values()), len(tried))
    return SuccessReport(success, tasks, float(np.mean([one.steps for one in tried])))


def chain_lengths(
    env: Any, policy: Policy, chains: Iterable[AskedFor], *, window: int = 10, steps: int = 80
) -> ChainReport:
    """How far a policy gets along chains: it is asked for the next goal only where it has reached the one before.

    Args:
        env: an environment that can be asked for one goal after the other, as `tessera/Tabletop-v0`: `reset` takes
            "table" and "goal" as options, and `begin(goal)` sets the next.
        steps: how long it may take over each goal.

    Raises:
        UserError: no chains, an environment that has none, or an action outside the limits.
    """
    env = env.unwrapped
    if not hasattr(env, "begin"):
        raise UserError(f"{type(env).__name__} has one goal an episode; chains need one like tessera/Tabletop-v0")
    lengths, most = [], 0
    for asked in chains:
        length, most = 0, max(most, len(asked.goals))
        for goal in asked.goals:
            begun = env.begin(goal) if length else env.reset(options={"table": asked.table, "goal": goal})
            if not roll(env, policy, begun, window=window, steps=steps, goal="", film=False).success:
                break
            length += 1
        lengths.append(length)
    if not lengths:
        raise UserError("an average chain length needs at least one chain")
    reached = tuple(exact_binomial(sum(one >= n for one in lengths), len(lengths)) for n in range(1, most + 1))
    return ChainReport(tuple(lengths), bootstrap_mean(lengths), reached)
