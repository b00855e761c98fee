"""Five goals one after the other, as CALVIN asks for them, and the expert's episodes on the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tessera.data.episodes import Episode
from tessera.data.worlds.tabletop.env import MAX_STEPS, Tabletop
from tessera.data.worlds.tabletop.expert import expert
from tessera.data.worlds.tabletop.goals import TASKS, Goal, done, random_goal
from tessera.data.worlds.tabletop.table import Table, random_table

LENGTH = 5


@dataclass(frozen=True)
class Chain:
    """A table, and goals of different tasks that can be reached from it one after the other."""

    table: Table
    goals: tuple[Goal, ...]


def chain(seed: int | tuple[int, ...]) -> Chain:
    """The chain of five goals that belongs to a seed. The expert has walked through all of them."""
    rng = np.random.default_rng(seed)
    while True:
        table = random_table(rng)
        start, goals = table.copy(), list[Goal]()
        while len(goals) < LENGTH:
            used = {goal.task for goal in goals}
            goal = random_goal(table, rng, tuple(task for task in TASKS if task not in used))
            if goal is None or not _walk(table, goal):
                break
            goals.append(goal)
        if len(goals) == LENGTH:
            return Chain(start, tuple(goals))


def _walk(table: Table, goal: Goal) -> bool:
    start = table.copy()
    for count, action in enumerate(steady_expert(table, goal)):
        table.act(action)
        if done(goal, start, table):
            return True
        if count == MAX_STEPS:
            break
    return False


def steady_expert(table: Table, goal: Goal) -> Iterator[np.ndarray]:
    """The expert's actions without end: where something went wrong, it starts anew."""
    while True:
        before = table.copy()
        yield from expert(table, goal)
        if before == table:
            return  # it knows nothing more to do


def demonstrations(asked: Chain, *, noise: float = 0.0, seed: int = 0) -> Iterator[Episode]:
    """The expert on its way through a chain, one episode a goal, each from where the one before has ended.

    Args:
        noise: standard deviation of what disturbs dx, dy and dz of each action; the disturbed action is the one that
            is done and kept, and the expert's next corrects for it.

    Episodes in which the disturbed expert does not arrive are left out, with those after them.
    """
    env, rng = Tabletop(), np.random.default_rng(seed)
    for place, goal in enumerate(asked.goals):
        seen, _ = env.begin(goal) if place else env.reset(options={"table": asked.table, "goal": goal})
        assert env.table is not None
        observations, actions, reached = [], list[np.ndarray](), False
        for action in steady_expert(env.table, goal):
            action[:3] = np.clip(action[:3] + noise * rng.standard_normal(3), -1, 1)
            observations.append(seen)
            actions.append(action)
            seen, _, reached, _, _ = env.step(action)
            if reached or len(actions) == MAX_STEPS:
                break
        if not reached:
            return
        kept = {name: np.stack([one[name] for one in observations]) for name in seen}
        state = kept.pop("state")
        yield Episode(kept, state, np.stack(actions), goal.text, goal.task)
