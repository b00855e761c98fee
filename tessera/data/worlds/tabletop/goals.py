"""What can be asked for at the table: ten tasks, the sentences that ask for them, and when each is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tessera.data.worlds.tabletop.table import (
    ARM,
    FINGER,
    GROUND,
    INSIDE,
    RADIUS,
    TRAYS,
    Table,
    Thing,
    in_tray,
)

PUSHED = 0.12  # how far a push must move its thing
STRAY = 0.08  # how far off its line it may end
LIFTED = 0.6  # how high a lifted thing must be
ENDS = 0.1  # how near the end of its rail the slider must be

# {x} is the thing that the task is about, {y} the one that it goes onto.
SENTENCES: dict[str, tuple[str, ...]] = {
    "push left": (
        "push {x} to the left", "slide {x} left", "nudge {x} towards the left",
        "move {x} left along the table", "shove {x} leftwards",
    ),
    "push right": (
        "push {x} to the right", "slide {x} right", "nudge {x} towards the right",
        "move {x} right along the table", "shove {x} rightwards",
    ),
    "lift": (
        "lift {x}", "pick up {x}", "grasp {x} and lift it", "raise {x} from the table", "take {x} into the air",
    ),
    "place left": (
        "put {x} in the left tray", "place {x} into the left tray", "bring {x} to the left tray",
        "set {x} down in the tray on the left", "leave {x} in the left tray",
    ),
    "place right": (
        "put {x} in the right tray", "place {x} into the right tray", "bring {x} to the right tray",
        "set {x} down in the tray on the right", "leave {x} in the right tray",
    ),
    "stack": (
        "stack {x} on {y}", "put {x} on top of {y}", "place {x} onto {y}", "set {x} down on {y}",
        "build a tower with {x} on {y}",
    ),
    "slider left": (
        "move the slider to the left", "slide the knob to the left", "pull the slider left",
        "take the knob to the left end of its rail", "set the slider to the left",
    ),
    "slider right": (
        "move the slider to the right", "slide the knob to the right", "pull the slider right",
        "take the knob to the right end of its rail", "set the slider to the right",
    ),
    "lamp on": (
        "turn on the lamp", "switch the lamp on", "press the button to turn the light on", "make the lamp shine",
        "light the lamp",
    ),
    "lamp off": (
        "turn off the lamp", "switch the lamp off", "press the button to turn the light off", "make the lamp dark",
        "put the lamp out",
    ),
}  # fmt: skip
TASKS = tuple(SENTENCES)
SIDES = {"left": -1, "right": 1}


@dataclass(frozen=True, slots=True)
class Goal:
    """One task about the things number `thing` and `onto`, where it is about any, and the sentence that asks for it."""

    task: str
    thing: int | None = None
    onto: int | None = None
    text: str = ""

    @property
    def side(self) -> str:
        """The last word of the task: left, right, on, off."""
        return self.task.rpartition(" ")[2]


def sentences(goal: Goal, table: Table) -> tuple[str, ...]:
    """All the ways to ask for a goal."""
    x, y = ("" if n is None else _called(table.things[n]) for n in (goal.thing, goal.onto))
    return tuple(sentence.format(x=x, y=y) for sentence in SENTENCES[goal.task])


def _called(thing: Thing) -> str:
    return f"the {thing.colour} {thing.shape}"


def asked(goal: Goal, table: Table, rng: np.random.Generator) -> Goal:
    """The goal with one of its sentences."""
    texts = sentences(goal, table)
    return Goal(goal.task, goal.thing, goal.onto, texts[int(rng.integers(len(texts)))])


def done(goal: Goal, start: Table, now: Table) -> bool:
    """Whether the goal that was set at `start` is reached."""
    if goal.thing is None:
        if goal.task.startswith("lamp"):
            return now.lamp == (goal.side == "on")
        return now.slider <= ENDS if goal.side == "left" else now.slider >= 1 - ENDS
    thing, before = now.things[goal.thing], start.things[goal.thing]
    in_hand = now.held == goal.thing
    if goal.task == "lift":
        return in_hand and now.z >= LIFTED
    if goal.task == "stack":
        return not in_hand and thing.on == goal.onto
    if goal.task.startswith("place"):
        return not in_hand and thing.on is None and in_tray(thing, goal.side)
    along = (thing.x - before.x) * SIDES[goal.side]
    return not in_hand and thing.on is None and along >= PUSHED and abs(thing.y - before.y) <= STRAY


def free_spot(table: Table, index: int, side: str) -> tuple[float, float] | None:
    """The point nearest to the middle of a tray with room for thing `index`; None where there is none."""
    x, y = TRAYS[side]
    offsets = np.linspace(-INSIDE + 0.02, INSIDE - 0.02, 5)
    others = [n for n in table.standing() if n != index]
    spots = sorted(((dx, dy) for dx in offsets for dy in offsets), key=lambda spot: np.hypot(*spot))
    for dx, dy in spots:
        if all(table.gap(n, x + dx, y + dy) > 2 * RADIUS + 0.02 for n in others):
            return x + float(dx), y + float(dy)
    return None


def _can_push(table: Table, index: int, side: str) -> bool:
    """Room for the thing to go, and for the gripper to come down behind it."""
    thing, sign = table.things[index], SIDES[side]
    end, behind = thing.x + sign * (PUSHED + 0.04), thing.x - sign * (RADIUS + FINGER + 0.02)
    if not (GROUND[0][0] <= end <= GROUND[0][1] and ARM[0] <= behind <= ARM[1]):
        return False
    for other in table.standing():
        if other != index:
            there = table.things[other]
            beside = abs(there.y - thing.y) < 2 * RADIUS + 0.01
            ahead = -RADIUS < (there.x - thing.x) * sign < PUSHED + 0.04 + 2 * RADIUS
            if (beside and ahead) or table.gap(other, behind, thing.y) < RADIUS + FINGER + 0.01:
                return False
    return True


def feasible(goal: Goal, table: Table) -> bool:
    """Whether the goal can be reached from here and is not reached yet.

    With a thing in the gripper, only what can be done with it: put it somewhere.
    """
    if done(goal, table, table):
        return False
    if table.held is not None and (goal.thing != table.held or goal.task == "lift" or goal.task.startswith("push")):
        return False
    if goal.thing is None:
        return True
    if not table.clear(goal.thing):
        return False
    if goal.task == "stack":
        onto = goal.onto
        return onto is not None and onto != goal.thing and table.things[onto].on is None and table.clear(onto)
    if goal.task.startswith("place"):
        return free_spot(table, goal.thing, goal.side) is not None
    if goal.task.startswith("push"):
        return table.things[goal.thing].on is None and _can_push(table, goal.thing, goal.side)
    return True


def goals(table: Table, task: str) -> Iterator[Goal]:
    """All feasible goals of a task, without their sentences."""
    count = len(table.things)
    about: list[tuple[int | None, int | None]] = [(n, None) for n in range(count)]
    if task == "stack":
        about = [(n, m) for n in range(count) for m in range(count) if n != m]
    elif task.split()[0] in ("slider", "lamp"):
        about = [(None, None)]
    yield from (goal for goal in (Goal(task, n, m) for n, m in about) if feasible(goal, table))


def random_goal(table: Table, rng: np.random.Generator, tasks: tuple[str, ...] = TASKS) -> Goal | None:
    """A feasible goal of one of the tasks, each task equally likely; None where none is feasible."""
    open_to = {task: found for task in tasks if (found := list(goals(table, task)))}
    if not open_to:
        return None
    found = open_to[list(open_to)[int(rng.integers(len(open_to)))]]
    return asked(found[int(rng.integers(len(found)))], table, rng)
