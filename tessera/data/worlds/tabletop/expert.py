"""A scripted expert: it looks at the table itself, not at pictures, and goes straight to each goal."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tessera.data.worlds.tabletop.goals import SIDES, Goal, free_spot
from tessera.data.worlds.tabletop.table import (
    BUTTON,
    FINGER,
    LEVEL,
    LIFT,
    RADIUS,
    RAIL,
    RAIL_Y,
    STEP,
    Table,
    Thing,
)

HIGH = 0.85  # it travels at this height, above every pile
NEAR = 0.015  # near enough to where it wants to be
OPEN, CLOSED = 1.0, -1.0


def expert(table: Table, goal: Goal) -> Iterator[np.ndarray]:
    """Actions, float32 [4] each, that reach `goal`: give each to the table before asking for the next.

    It looks where things are now, so it corrects for small disturbances. The actions end where all is done or where
    something went wrong; then ask again from where things are.
    """
    if table.knob:
        yield _action(grip=OPEN)
    task = goal.task
    if task.startswith("push"):
        yield from _push(table, goal)
    elif task.startswith("slider"):
        yield from _slide(table, goal)
    elif task.startswith("lamp"):
        yield from _travel(table, *BUTTON, CLOSED)
        yield from _height(table, 0.0, CLOSED)
    else:
        yield from _carry(table, goal)


def _action(dx: float = 0.0, dy: float = 0.0, dz: float = 0.0, grip: float = OPEN) -> np.ndarray:
    return np.array([dx, dy, dz, grip], np.float32)


def _to(table: Table, x: float, y: float, grip: float) -> np.ndarray:
    """One step straight towards (x, y), never faster than an action of 1 each way."""
    ways = np.array([x - table.x, y - table.y]) / STEP
    ways /= max(1.0, float(np.abs(ways).max()))
    return _action(ways[0], ways[1], grip=grip)


def _height(table: Table, z: float, grip: float) -> Iterator[np.ndarray]:
    """Up or down to height z, or as far as that goes."""
    last = None
    while abs(table.z - z) > NEAR and table.z != last:
        last = table.z
        yield _action(dz=float(np.clip((z - table.z) / LIFT, -1, 1)), grip=grip)


def _travel(table: Table, x: float, y: float, grip: float) -> Iterator[np.ndarray]:
    """Up with the fingers as they are, so that what stands between them stays; then above everything to (x, y)."""
    while table.z < HIGH - NEAR:
        yield _action(dz=min(1.0, (HIGH - table.z) / LIFT), grip=OPEN if table.opened else CLOSED)
    while max(abs(table.x - x), abs(table.y - y)) > NEAR:
        yield _to(table, x, y, grip)


def _push(table: Table, goal: Goal) -> Iterator[np.ndarray]:
    index, sign = goal.thing, SIDES[goal.side]
    assert index is not None
    thing = table.things[index]
    yield from _travel(table, thing.x - sign * (RADIUS + FINGER + 0.02), thing.y, CLOSED)
    yield from _height(table, 0.0, CLOSED)
    while _behind(table, table.things[index], sign):
        before = table.things[index].x
        yield _to(table, table.x + sign * STEP, table.things[index].y, CLOSED)
        if abs(table.things[index].x - before) < NEAR and table.gap(index, table.x, table.y) < RADIUS + FINGER + NEAR:
            return  # it is stuck


def _behind(table: Table, thing: Thing, sign: int) -> bool:
    """Whether the gripper stands where a push on a side sends the thing the right way."""
    return (thing.x - table.x) * sign > 0.8 * RADIUS and abs(thing.y - table.y) < FINGER


def _slide(table: Table, goal: Goal) -> Iterator[np.ndarray]:
    yield from _travel(table, table.knob_x, RAIL_Y, OPEN)
    yield from _height(table, 0.0, OPEN)
    yield _action(grip=CLOSED)
    end = RAIL[0] if goal.side == "left" else RAIL[1]
    while abs(table.x - end) > NEAR:
        yield _to(table, end, RAIL_Y, CLOSED)


def _carry(table: Table, goal: Goal) -> Iterator[np.ndarray]:
    index = goal.thing
    assert index is not None
    if table.held != index:
        thing = table.things[index]
        yield from _travel(table, thing.x, thing.y, OPEN)
        yield from _height(table, LEVEL * table.level(index), OPEN)
        yield _action(grip=CLOSED)
    yield from _travel(table, table.x, table.y, CLOSED)
    if goal.task == "lift":
        return
    if goal.task == "stack":
        assert goal.onto is not None
        onto = table.things[goal.onto]
        spot: tuple[float, float] | None = (onto.x, onto.y)
    else:
        spot = free_spot(table, index, goal.side)
    if spot is not None:
        yield from _travel(table, *spot, CLOSED)
        yield from _height(table, 0.0, CLOSED)
        yield _action(grip=OPEN)
